"""OLMo 2: norms behind the layers, and one norm over the queries, and the keys, of all heads;
arXiv:2501.00656.
"""

from __future__ import annotations

from maxlm.checkpoint.hf.families import fragments as like
from maxlm.checkpoint.hf.families.family import Family, Row
from maxlm.checkpoint.hf.families.keys import Fixed, Key
from maxlm.checkpoint.hf.families.positions import Rope

OLMO2 = Family(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    keys=(
        *like.SHAPE,
        *like.heads(),
        *like.GATED_MLP,
        Fixed("block.norms", "post"),
        Fixed("attention.qk_norm", "rmsnorm_all"),
        Key("attention_bias", "attention.bias", False, like.BIAS),
        Rope(),
        like.rms_norm(1e-5),
        like.tied(),
    ),
    rows={
        **like.ROWS,
        "block": (
            Row("mixer_post_norm/scale", like.LAYER + "post_attention_layernorm.weight"),
            Row("ffn_post_norm/scale", like.LAYER + "post_feedforward_layernorm.weight"),
        ),
        "attention": (
            *like.ATTENTION,
            Row("query_norm/scale", like.LAYER + "self_attn.q_norm.weight", "(n h) -> n h"),
            Row("key_norm/scale", like.LAYER + "self_attn.k_norm.weight", "(n h) -> n h"),
        ),
    },
    unused=like.ROTARY_BUFFERS,
)
