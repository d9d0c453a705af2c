"""GPT-OSS: sinks, windows in every other layer, biased experts with clamped gates; arXiv:2508.10925."""

from __future__ import annotations

from maxlm.checkpoint.hf.families import fragments as like
from maxlm.checkpoint.hf.families.family import Family, Row
from maxlm.checkpoint.hf.families.keys import Fixed, Ignored, Key, Must
from maxlm.checkpoint.hf.families.positions import Rope

_MOE = like.LAYER + "mlp."
_EXPERTS = _MOE + "experts."

GPT_OSS = Family(
    name="gpt_oss",
    architecture="GptOssForCausalLM",
    ffn="moe",
    keys=(
        *like.SHAPE,
        *like.heads(head_dim=64),
        Must("attention_bias", True),
        Fixed("attention.bias", "all"),
        Fixed("attention.sinks", True),
        like.LayerTypes(switch=None, first=None, every=2),
        Rope(theta=150_000.0),
        Key("num_local_experts", "moe.num_experts", like.same_as("num_experts")),
        Key("num_experts_per_tok", "moe.experts_per_token", like.same_as("experts_per_token")),
        Key("intermediate_size", "moe.expert_dim"),
        Must("hidden_act", "silu"),
        Must("swiglu_limit", 7.0),
        Must("swiglu_alpha", 1.702),
        Fixed("moe.activation", "swiglu_clamped"),
        Fixed("moe.bias", "all"),
        like.Router(
            fixed={"kind": "softmax", "weights": "normalised", "bias": True}, normalised=None
        ),
        like.AuxiliaryLoss(default=0.9),
        Ignored(("output_router_logits", "initial_context_length", "num_experts")),
        Ignored(("experts_per_token", "rope_ntk_alpha", "rope_ntk_beta")),
        like.rms_norm(1e-5),
        like.tied(),
    ),
    rows={
        **like.ROWS,
        "attention": (*like.ATTENTION, Row("sink_bias", like.LAYER + "self_attn.sinks")),
        # Gate and up alternate.
        "moe": (
            Row("router", _MOE + "router.weight", "e d -> d e"),
            Row("router_linear_bias", _MOE + "router.bias"),
            Row("gate", _EXPERTS + "gate_up_proj", "e d (f [1]) -> e d f"),
            Row("up", _EXPERTS + "gate_up_proj", "e d (f [1]) -> e d f"),
            Row("gate_bias", _EXPERTS + "gate_up_proj_bias", "e (f [1]) -> e f"),
            Row("up_bias", _EXPERTS + "gate_up_proj_bias", "e (f [1]) -> e f"),
            Row("down", _EXPERTS + "down_proj", "e f d -> e f d"),
            Row("down_bias", _EXPERTS + "down_proj_bias", "e d -> e d"),
        ),
    },
    unused=like.ROTARY_BUFFERS,
)
