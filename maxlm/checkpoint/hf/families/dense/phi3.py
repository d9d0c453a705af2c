"""Phi-3 and Phi-4: query, key and value in one tensor, gate and up in another; arXiv:2404.14219."""

from __future__ import annotations

from maxlm.checkpoint.hf.families import fragments as like
from maxlm.checkpoint.hf.families.family import Family, Row
from maxlm.checkpoint.hf.families.keys import Ignored, TrainingOnly
from maxlm.checkpoint.hf.families.positions import Rope

_QKV, _GATE_UP = like.LAYER + "self_attn.qkv_proj.weight", like.LAYER + "mlp.gate_up_proj.weight"

PHI3 = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    keys=(
        *like.SHAPE,
        *like.heads(),
        *like.GATED_MLP,
        like.Window(absent=None),
        Rope(),
        like.rms_norm(1e-5),
        like.tied(),
        TrainingOnly("resid_pdrop"),
        TrainingOnly("embd_pdrop"),
        Ignored(("original_max_position_embeddings", "attention_bias")),
    ),
    rows={
        **like.ROWS,
        "attention": (
            Row("query", _QKV, "[(n h)] d -> d n h"),
            Row("key", _QKV, "[(n h)] d -> d n h"),
            Row("value", _QKV, "[(n h)] d -> d n h"),
            Row("out", like.LAYER + "self_attn.o_proj.weight", "d (n h) -> n h d"),
        ),
        "mlp": (
            Row("gate", _GATE_UP, "[f] d -> d f"),
            Row("up", _GATE_UP, "[f] d -> d f"),
            Row("down", like.LAYER + "mlp.down_proj.weight", "d f -> f d"),
        ),
    },
    unused=like.ROTARY_BUFFERS,
)
