"""Mistral and Mixtral: attention within a window, and experts; arXiv:2310.06825, arXiv:2401.04088."""

from __future__ import annotations

from maxlm.checkpoint.hf.families import fragments as like
from maxlm.checkpoint.hf.families.family import Family, Row
from maxlm.checkpoint.hf.families.keys import Fixed, Ignored, Key, TrainingOnly
from maxlm.checkpoint.hf.families.positions import Rope

_MOE = like.LAYER + "block_sparse_moe."

MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    keys=(
        *like.SHAPE,
        *like.heads(),
        *like.GATED_MLP,
        # An absent window is 4,096, null none.
        like.Window(absent=4096),
        Rope(),
        like.rms_norm(),
        like.tied(),
    ),
    rows=like.ROWS,
    unused=like.ROTARY_BUFFERS,
)

MIXTRAL = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    ffn="moe",
    keys=(
        *like.SHAPE,
        *like.heads(),
        like.Window(absent=None),
        Rope(theta=1e6),
        Key("num_local_experts", "moe.num_experts", 8),
        Key("num_experts_per_tok", "moe.experts_per_token", 2),
        Key("intermediate_size", "moe.expert_dim"),
        Key("hidden_act", "moe.activation", "silu", like.SILU),
        like.AuxiliaryLoss(),
        Fixed("moe.router", {"kind": "softmax", "weights": "normalised"}),
        TrainingOnly("router_jitter_noise"),
        Ignored(("output_router_logits",)),
        like.rms_norm(1e-5),
        like.tied(),
    ),
    rows={
        **like.ROWS,
        "moe": (
            Row("router", _MOE + "gate.weight", "e d -> d e"),
            Row("gate", _MOE + "experts.{e}.w1.weight", "f d -> e d f"),
            Row("up", _MOE + "experts.{e}.w3.weight", "f d -> e d f"),
            Row("down", _MOE + "experts.{e}.w2.weight", "d f -> e f d"),
        ),
    },
    unused=like.ROTARY_BUFFERS,
)
