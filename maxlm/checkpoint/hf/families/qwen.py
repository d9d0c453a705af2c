"""Qwen2, Qwen2.5 and Qwen3: biases on queries, keys and values, later a norm on each head's;
arXiv:2412.15115, arXiv:2505.09388.
"""

from __future__ import annotations

from maxlm.checkpoint.hf.families import fragments as like
from maxlm.checkpoint.hf.family import Family
from maxlm.checkpoint.hf.keys import Fixed, Key

QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    keys=(
        *like.SHAPE,
        *like.heads(),
        *like.GATED_MLP,
        Fixed("attention.bias", "qkv"),
        like.LayerTypes(),
        like.Rope(),
        like.rms_norm(),
        like.tied(),
    ),
    rows=like.ROWS,
    unused=like.ROTARY_BUFFERS,
)

QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    keys=(
        *like.SHAPE,
        *like.heads(head_dim=128),
        *like.GATED_MLP,
        Fixed("attention.qk_norm", "rmsnorm"),
        Key("attention_bias", "attention.bias", False, like.BIAS),
        like.LayerTypes(),
        like.Rope(),
        like.rms_norm(),
        like.tied(),
    ),
    rows={**like.ROWS, "attention": like.ATTENTION + like.QK_NORM},
    unused=like.ROTARY_BUFFERS,
)
