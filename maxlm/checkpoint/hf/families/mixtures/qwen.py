"""Qwen2, Qwen2.5 and Qwen3, plain and of experts: biases on queries, keys and values, later a norm on each head's;
arXiv:2412.15115, arXiv:2505.09388.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maxlm.checkpoint.hf.families import fragments as like
from maxlm.checkpoint.hf.families.family import Family, Row
from maxlm.checkpoint.hf.families.keys import (
    Fixed,
    Ignored,
    Key,
    KeyRow,
    Reading,
    all_of_kind,
)
from maxlm.checkpoint.hf.families.positions import Rope
from maxlm.config.model import ModelConfig

_MLP = like.LAYER + "mlp."


@dataclass(frozen=True)
class SparseLayers:
    """Which layers are mixtures: each `decoder_sparse_step`th that is not in `mlp_only_layers`."""

    def read(self, reading: Reading) -> None:
        """Give dense layers a plain ffn."""
        count = reading.need("num_hidden_layers") or 0
        step, dense = reading.get("decoder_sparse_step", 1), reading.get("mlp_only_layers", [])
        for layer in range(count):
            if layer in dense or (layer + 1) % step:
                reading.of_block(layer, "ffn", {"kind": "mlp"})

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write the dense layers one by one."""
        return {"decoder_sparse_step": 1, "mlp_only_layers": list(all_of_kind(model, "mlp"))}


@dataclass(frozen=True)
class DenseLayers:
    """Settings of the plain ffns among mixtures, if there are any."""

    def read(self, reading: Reading) -> None:
        """Set them."""
        reading.set("mlp.hidden_dim", reading.need("intermediate_size"))
        reading.set("mlp.activation", "swiglu")

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write the width of the first one; a model without any has no need of it."""
        widths = [ffn.hidden_dim for ffn in all_of_kind(model, "mlp").values()]
        return {"intermediate_size": widths[0] if widths else model.embed_dim}


_MIXTURE: tuple[KeyRow, ...] = (
    *like.SHAPE,
    DenseLayers(),
    SparseLayers(),
    Key("num_experts", "moe.num_experts", like.same_as("num_local_experts")),
    Key("num_experts_per_tok", "moe.experts_per_token"),
    Key("moe_intermediate_size", "moe.expert_dim"),
    Key("hidden_act", "moe.activation", "silu", like.SILU),
    like.Router(),
    Ignored(("output_router_logits", "num_local_experts")),
    like.AuxiliaryLoss(),
    like.LayerTypes(),
    Rope(),
    like.rms_norm(),
    like.tied(),
)

QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    keys=(
        *like.SHAPE,
        *like.heads(),
        *like.GATED_MLP,
        Fixed("attention.bias", "qkv"),
        like.LayerTypes(),
        Rope(),
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
        Rope(),
        like.rms_norm(),
        like.tied(),
    ),
    rows={**like.ROWS, "attention": like.ATTENTION + like.QK_NORM},
    unused=like.ROTARY_BUFFERS,
)

QWEN2_MOE = Family(
    name="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    ffn="moe",
    keys=(
        *_MIXTURE,
        *like.heads(),
        Key("qkv_bias", "attention.bias", True, {True: "qkv", False: "none"}),
        Key("shared_expert_intermediate_size", "moe.shared_dim"),
        Fixed("moe.shared_gate", True),
    ),
    rows={
        **like.ROWS,
        "moe": (
            *like.experts(_MLP),
            *like.shared_expert(_MLP + "shared_expert."),
            Row("shared_gate", _MLP + "shared_expert_gate.weight", "1 d -> d"),
        ),
    },
    unused=like.ROTARY_BUFFERS,
)

QWEN3_MOE = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    ffn="moe",
    keys=(
        *_MIXTURE,
        *like.heads(),
        Fixed("attention.qk_norm", "rmsnorm"),
        Key("attention_bias", "attention.bias", False, like.BIAS),
    ),
    rows={
        **like.ROWS,
        "attention": like.ATTENTION + like.QK_NORM,
        "moe": like.experts(_MLP),
    },
    unused=like.ROTARY_BUFFERS,
)
