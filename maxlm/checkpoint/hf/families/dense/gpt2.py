"""GPT-2: learned positions, layer norms, and query, key and value in one tensor."""

from __future__ import annotations

from maxlm.checkpoint.hf.families.family import Family, Row
from maxlm.checkpoint.hf.families.keys import Fixed, Ignored, Key, Must, TrainingOnly, same_as

_LAYER = "transformer.h.{layer}."
_GELU = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu_exact",
    "relu": "relu",
}

GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    keys=(
        Key("vocab_size", "model.vocab_size"),
        Key("n_embd", "model.embed_dim"),
        Key("n_layer", "model.num_layers"),
        Fixed("position.kind", "learned"),
        Key("n_positions", "position.max_length", same_as("n_ctx")),
        Key("n_head", "attention.num_heads"),
        Fixed("attention.head_dim", lambda keys: keys.get("n_embd", 0) // keys.get("n_head", 1)),
        Fixed("attention.bias", "all"),
        Fixed("attention.position", {"kind": "none"}),
        Key("n_inner", "mlp.hidden_dim", lambda keys: 4 * keys.get("n_embd", 0)),
        Key("activation_function", "mlp.activation", "gelu_new", _GELU),
        Fixed("mlp.bias", "all"),
        Fixed("norm.kind", "layernorm"),
        Key("layer_norm_epsilon", "norm.epsilon", 1e-5),
        Key("initializer_range", "model.init_std", 0.02),
        Key("tie_word_embeddings", "model.tie_embeddings", True),
        Must("scale_attn_weights", True),
        Must("scale_attn_by_inverse_layer_idx", False),
        Must("add_cross_attention", False),
        TrainingOnly("resid_pdrop", 0.1),
        TrainingOnly("embd_pdrop", 0.1),
        TrainingOnly("attn_pdrop", 0.1),
        Ignored(("n_ctx", "reorder_and_upcast_attn", "summary_activation", "summary_type")),
        Ignored(("summary_use_proj", "summary_proj_to_labels", "summary_first_dropout")),
    ),
    rows={
        "model": (
            Row("embedding/tokens", "transformer.wte.weight", "v d -> v d"),
            Row("embedding/positions", "transformer.wpe.weight", "t d -> t d"),
            Row("norm/scale", "transformer.ln_f.weight"),
            Row("norm/bias", "transformer.ln_f.bias"),
            Row("head/output", "lm_head.weight", "v d -> d v"),
        ),
        "block": (
            Row("mixer_norm/scale", _LAYER + "ln_1.weight"),
            Row("mixer_norm/bias", _LAYER + "ln_1.bias"),
            Row("ffn_norm/scale", _LAYER + "ln_2.weight"),
            Row("ffn_norm/bias", _LAYER + "ln_2.bias"),
        ),
        # Its layers are x W, where all others are W x.
        "attention": (
            Row("query", _LAYER + "attn.c_attn.weight", "d [(n h)] -> d n h"),
            Row("key", _LAYER + "attn.c_attn.weight", "d [(n h)] -> d n h"),
            Row("value", _LAYER + "attn.c_attn.weight", "d [(n h)] -> d n h"),
            Row("query_bias", _LAYER + "attn.c_attn.bias", "[(n h)] -> n h"),
            Row("key_bias", _LAYER + "attn.c_attn.bias", "[(n h)] -> n h"),
            Row("value_bias", _LAYER + "attn.c_attn.bias", "[(n h)] -> n h"),
            Row("out", _LAYER + "attn.c_proj.weight", "(n h) d -> n h d"),
            Row("out_bias", _LAYER + "attn.c_proj.bias"),
        ),
        "mlp": (
            Row("up", _LAYER + "mlp.c_fc.weight", "d f -> d f"),
            Row("up_bias", _LAYER + "mlp.c_fc.bias"),
            Row("down", _LAYER + "mlp.c_proj.weight", "f d -> f d"),
            Row("down_bias", _LAYER + "mlp.c_proj.bias"),
        ),
    },
    unused=(".attn.bias", ".attn.masked_bias"),
    optional_prefix="transformer.",
)
