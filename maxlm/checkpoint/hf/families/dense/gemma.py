"""Gemma 1, 2 and 3 (text): norms with 1 + weight, and embeddings times sqrt(D); arXiv:2403.08295,
arXiv:2408.00118, arXiv:2503.19786.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maxlm.checkpoint.hf.families import fragments as like
from maxlm.checkpoint.hf.families.family import Family
from maxlm.checkpoint.hf.families.keys import Fixed, Ignored, Key, KeyRow, Must, Reading
from maxlm.checkpoint.hf.families.positions import Rope
from maxlm.config.model import ModelConfig

_GELU = {"gelu_pytorch_tanh": "geglu_tanh", "gelu": "geglu_tanh"}
"""The first files said gelu and meant the approximation."""


def _query_scale(reading: Reading) -> float:
    return float(reading.get("query_pre_attn_scalar", 256)) ** -0.5


@dataclass(frozen=True)
class QueryScale:
    """Scores are divided by the root of `query_pre_attn_scalar`."""

    def read(self, reading: Reading) -> None:
        """Set attention's scale."""
        reading.set("attention.scale", _query_scale(reading))

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write what the scale is the inverse root of."""
        attention = like.first_of_kind(model, "attention")
        scale = attention.scale or attention.head_dim**-0.5
        scalar = scale**-2
        whole = round(scalar)
        return {"query_pre_attn_scalar": whole if float(whole) ** -0.5 == scale else scalar}


@dataclass(frozen=True)
class TwoRopes:
    """Layers with a window turn slowly, others have a base of their own, perhaps stretched."""

    rope: Rope

    def read(self, reading: Reading) -> None:
        """Give every layer its position; the windows are read before."""
        newer = reading.get("rope_parameters") or {}
        base = {"rope_theta": float(reading.get("rope_theta", self.rope.theta))}
        whole = {**base, **newer.get("full_attention", reading.get("rope_scaling") or {})}
        local = {"rope_theta": float(reading.get("rope_local_base_freq", 10_000.0))}
        near = {**local, **newer.get("sliding_attention", {})}
        positions = [self.rope.position(reading, keys) for keys in (whole, near)]
        windows = [block.get("mixer", {}).get("window") for block in reading.blocks]
        every = reading.sections.get("attention", {}).get("window")
        reading.set("attention.position", positions[bool(every)])
        for layer, window in enumerate(windows):
            reading.of_block(layer, "mixer", {"position": positions[bool(window)]})

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write the two, the older way."""
        mixers: list[Any] = [block.mixer for block in model.layers]
        whole = next((m for m in mixers if m.window is None), mixers[0])
        near = next((m for m in mixers if m.window is not None), None)
        keys = self.rope.keys(whole.position, whole.head_dim)
        theta = 10_000.0 if near is None else near.position.theta
        return {**keys, "rope_local_base_freq": theta}


def _alike() -> tuple[KeyRow, ...]:
    return (
        *like.SHAPE,
        *like.heads(head_dim=256),
        Key("intermediate_size", "mlp.hidden_dim"),
        Key("attention_bias", "attention.bias", False, like.BIAS),
        Fixed("model.embed_scale", lambda keys: float(keys.get("hidden_size", 0)) ** 0.5),
        Fixed("norm.scale", "one_plus"),
        Must("use_bidirectional_attention", False),
        like.rms_norm(),
        like.tied(default=True),
    )


_CAPPED: tuple[KeyRow, ...] = (
    Fixed("block.norms", "sandwich"),
    Key("hidden_activation", "mlp.activation", "gelu_pytorch_tanh", _GELU),
    Key("final_logit_softcapping", "model.logit_softcap", None),
    Key("attn_logit_softcapping", "attention.softcap", None),
    Ignored(("hidden_act", "cache_implementation")),
    QueryScale(),
)

GEMMA = Family(
    name="gemma",
    architecture="GemmaForCausalLM",
    keys=(
        *_alike(),
        Key("hidden_act", "mlp.activation", "gelu_pytorch_tanh", _GELU),
        Ignored(("hidden_activation",)),
        Rope(),
    ),
    rows=like.ROWS,
    unused=like.ROTARY_BUFFERS,
)

GEMMA2 = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    keys=(*_alike(), *_CAPPED, like.LayerTypes(switch=None, first=None, every=2), Rope()),
    rows={**like.ROWS, "block": like.SANDWICH_NORMS},
    unused=like.ROTARY_BUFFERS,
)

GEMMA3 = Family(
    name="gemma3_text",
    architecture="Gemma3ForCausalLM",
    keys=(
        *_alike(),
        *_CAPPED,
        Fixed("attention.qk_norm", "rmsnorm"),
        like.LayerTypes(switch=None, first=None, every=6),
        Ignored(("_sliding_window_pattern", "sliding_window_pattern")),
        TwoRopes(Rope(theta=1_000_000.0)),
    ),
    rows={
        **like.ROWS,
        "block": like.SANDWICH_NORMS,
        "attention": like.ATTENTION + like.QK_NORM,
    },
    unused=like.ROTARY_BUFFERS,
)
