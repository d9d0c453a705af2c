"""GPT-NeoX and Pythia: mixer and ffn side by side, a quarter of each head turned; arXiv:2204.06745,
arXiv:2304.01373.
"""

from __future__ import annotations

from maxlm.checkpoint.hf.families import fragments as like
from maxlm.checkpoint.hf.families.family import Family, Row
from maxlm.checkpoint.hf.families.keys import Fixed, Ignored, Key, Must, TrainingOnly
from maxlm.checkpoint.hf.families.positions import Rope

_LAYER = "gpt_neox.layers.{layer}."
_QKV = _LAYER + "attention.query_key_value."
_GELU = {
    "gelu": "gelu_exact",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

GPT_NEOX = Family(
    name="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    keys=(
        *like.SHAPE,
        Key("num_attention_heads", "attention.num_heads"),
        Fixed(
            "attention.head_dim",
            lambda keys: keys.get("hidden_size", 0) // keys.get("num_attention_heads", 1),
        ),
        Key("intermediate_size", "mlp.hidden_dim"),
        Key("hidden_act", "mlp.activation", "gelu", _GELU),
        Key(
            "use_parallel_residual",
            "block.residual",
            True,
            {True: "parallel", False: "sequential"},
        ),
        Must("attention_bias", True),
        Fixed("attention.bias", "all"),
        Fixed("mlp.bias", "all"),
        Fixed("norm.kind", "layernorm"),
        Key("layer_norm_eps", "norm.epsilon", 1e-5),
        Rope(fraction=0.25, share="rotary_pct"),
        Ignored(("rotary_emb_base", "classifier_dropout")),
        TrainingOnly("attention_dropout"),
        TrainingOnly("hidden_dropout"),
        like.tied(),
    ),
    rows={
        "model": (
            Row("embedding/tokens", "gpt_neox.embed_in.weight", "v d -> v d"),
            Row("norm/scale", "gpt_neox.final_layer_norm.weight"),
            Row("norm/bias", "gpt_neox.final_layer_norm.bias"),
            Row("head/output", "embed_out.weight", "v d -> d v"),
        ),
        "block": (
            Row("mixer_norm/scale", _LAYER + "input_layernorm.weight"),
            Row("mixer_norm/bias", _LAYER + "input_layernorm.bias"),
            Row("ffn_norm/scale", _LAYER + "post_attention_layernorm.weight"),
            Row("ffn_norm/bias", _LAYER + "post_attention_layernorm.bias"),
        ),
        "attention": (
            Row("query", _QKV + "weight", "(n [1] h) d -> d n h"),
            Row("key", _QKV + "weight", "(n [1] h) d -> d n h"),
            Row("value", _QKV + "weight", "(n [1] h) d -> d n h"),
            Row("query_bias", _QKV + "bias", "(n [1] h) -> n h"),
            Row("key_bias", _QKV + "bias", "(n [1] h) -> n h"),
            Row("value_bias", _QKV + "bias", "(n [1] h) -> n h"),
            Row("out", _LAYER + "attention.dense.weight", "d (n h) -> n h d"),
            Row("out_bias", _LAYER + "attention.dense.bias"),
        ),
        "mlp": (
            Row("up", _LAYER + "mlp.dense_h_to_4h.weight", "f d -> d f"),
            Row("up_bias", _LAYER + "mlp.dense_h_to_4h.bias"),
            Row("down", _LAYER + "mlp.dense_4h_to_h.weight", "d f -> f d"),
            Row("down_bias", _LAYER + "mlp.dense_4h_to_h.bias"),
        ),
    },
    unused=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
)
