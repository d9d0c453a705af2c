"""Llama 4 Scout and Maverick, their text model: chunked attention with rotary positions, and every
fourth layer without either, whose queries grow with the position.
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
    Must,
    Reading,
    TrainingOnly,
    all_of_kind,
)
from maxlm.checkpoint.hf.families.positions import Rope
from maxlm.config.model import ModelConfig

_MOE = like.LAYER + "feed_forward."
_EXPERTS = _MOE + "experts."


@dataclass(frozen=True)
class GlobalLayers:
    """Layers that see everything: those with a 0 in `no_rope_layers`."""

    def read(self, reading: Reading) -> None:
        """Set what the others have, and take it away from these."""
        turned = like.layers_with_rope(reading)
        types = ["chunked_attention" if rope else "full_attention" for rope in turned]
        if reading.get("layer_types", types) != types:
            reading.refuse("layer_types", reading.get("layer_types"), "what no_rope_layers says")
        norm = "l2" if reading.get("use_qk_norm", True) else "none"
        reading.set("attention.qk_norm", norm)
        reading.set("attention.chunk", reading.get("attention_chunk_size", 8192))
        grows = {
            "scale": float(reading.get("attn_scale", 0.1)),
            "floor": int(reading.get("floor_scale", 8192)),
        }
        tuned = grows if reading.get("attn_temperature_tuning", True) else None
        everything = {"position": {"kind": "none"}, "chunk": None, "qk_norm": "none"}
        for layer, rope in enumerate(turned):
            own = {} if rope else {**everything, "temperature": tuned}
            reading.of_block(layer, "mixer", own)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write both kinds of layers."""
        mixers: list[Any] = [block.mixer for block in model.layers]
        turned = [int(mixer.position.kind != "none") for mixer in mixers]
        near = next((mixer for mixer in mixers if mixer.chunk), mixers[0])
        tuned = next((mixer.temperature for mixer in mixers if mixer.temperature), None)
        grown = {} if tuned is None else {"attn_scale": tuned.scale, "floor_scale": tuned.floor}
        return {
            "no_rope_layers": turned,
            "layer_types": ["chunked_attention" if r else "full_attention" for r in turned],
            "attention_chunk_size": near.chunk,
            "use_qk_norm": near.qk_norm == "l2",
            "attn_temperature_tuning": tuned is not None,
            **grown,
        }


@dataclass(frozen=True)
class SparseLayers:
    """Which layers are mixtures: `moe_layers`, or each so manieth."""

    def read(self, reading: Reading) -> None:
        """Give the others a plain ffn."""
        count, every = (
            reading.need("num_hidden_layers") or 0,
            reading.get("interleave_moe_layer_step", 1),
        )
        sparse = reading.get("moe_layers", list(range(every - 1, count, every)))
        for layer in range(count):
            if layer not in sparse:
                reading.of_block(layer, "ffn", {"kind": "mlp"})
        reading.set("mlp.hidden_dim", reading.get("intermediate_size_mlp", 16384))
        reading.set("mlp.activation", "swiglu")
        reading.set("moe.shared_dim", reading.need("intermediate_size"))

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write the mixtures one by one."""
        widths = [ffn.hidden_dim for ffn in all_of_kind(model, "mlp").values()]
        return {
            "moe_layers": list(all_of_kind(model, "moe")),
            "intermediate_size_mlp": widths[0] if widths else model.embed_dim,
        }


LLAMA4 = Family(
    name="llama4_text",
    architecture="Llama4ForCausalLM",
    ffn="moe",
    keys=(
        *like.SHAPE,
        *like.heads(),
        Rope(theta=500_000.0, layout="interleaved"),
        GlobalLayers(),
        Must("attention_bias", False),
        SparseLayers(),
        Key("num_local_experts", "moe.num_experts", 16),
        Key("num_experts_per_tok", "moe.experts_per_token", 1),
        Key("intermediate_size", "moe.expert_dim"),
        Key("hidden_act", "moe.activation", "silu", like.SILU),
        like.Router(
            fixed={"kind": "sigmoid", "weights": "as_scored", "apply_to": "input"}, normalised=None
        ),
        like.AuxiliaryLoss(),
        TrainingOnly("router_jitter_noise"),
        Ignored(("output_router_logits", "for_llm_compressor")),
        Fixed("moe.bias", "none"),
        like.rms_norm(1e-5),
        like.tied(),
    ),
    rows={
        **like.ROWS,
        "mlp": tuple(
            row._replace(theirs=row.theirs.replace(".mlp.", ".feed_forward.")) for row in like.MLP
        ),
        "moe": (
            Row("router", _MOE + "router.weight", "e d -> d e"),
            Row("gate", _EXPERTS + "gate_up_proj", "e d [f] -> e d f"),
            Row("up", _EXPERTS + "gate_up_proj", "e d [f] -> e d f"),
            Row("down", _EXPERTS + "down_proj", "e f d -> e f d"),
            *like.shared_expert(_MOE + "shared_expert."),
        ),
    },
    unused=like.ROTARY_BUFFERS,
)
