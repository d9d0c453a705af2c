"""Models for tests, from a few flat sizes."""

from __future__ import annotations

from typing import Any

from maxlm.config.schema import RunConfig

LENGTHENED = {"kind": "dynamic", "factor": 2.0, "original_length": 8}
SEARCHED = {"kind": "longrope", "short_factor": [1.5], "long_factor": [3.0], "factor": 4.0}
POSITIONS: tuple[dict[str, Any], ...] = (
    {
        "mixer": {
            "position": {"kind": "rope", "layout": "interleaved", "scaling": LENGTHENED},
            "qk_norm": "l2",
            "scale": 0.3,
            "chunk": 5,
        }
    },
    {
        "mixer": {
            "position": {"kind": "relative", "num_buckets": 6, "max_distance": 9},
            "qk_norm": "rmsnorm_all",
            "window": 4,
        }
    },
    {"mixer": {"position": {"kind": "alibi"}, "scale": 0.7}},
    {
        "mixer": {
            "position": {
                "kind": "rope",
                "rotary_dim": 2,
                "scaling": {**SEARCHED, "original_length": 12},
            },
            "temperature": {"scale": 0.5, "floor": 3},
        }
    },
)
"""A pattern of blocks that know positions in different ways; lengths of 9 to 12 and above 12 tokens
make a difference to it.
"""


def model_settings(
    *,
    num_heads: int = 1,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    mlp_dim: int = 8,
    prefix: Any = (),
    pattern: Any = ({},),
    **model: Any,
) -> dict[str, Any]:
    """Return a model section: blocks of `prefix` once, then those of `pattern` repeated.

    A block says what differs from attention with these heads and a gated layer with these hidden
    units.
    """
    mixer: dict[str, Any] = {"kind": "attention", "num_heads": num_heads}
    mixer["head_dim"] = head_dim or model["embed_dim"] // num_heads
    if num_kv_heads is not None:
        mixer["num_kv_heads"] = num_kv_heads
    position = model.pop("position", None)
    if position is not None:
        embedded = position["kind"] in ("learned", "sinusoidal")
        mixer["position"] = {"kind": "none"} if embedded else position
        model |= {"position": position} if embedded else {}
    block = {"mixer": mixer, "ffn": {"kind": "mlp", "hidden_dim": mlp_dim}}
    segments = [{"pattern": list(pattern)}]
    return {
        **model,
        "block": block,
        "segments": [*([{"repeat": 1, "pattern": list(prefix)}] if prefix else []), *segments],
    }


def run_settings(model: dict[str, Any], *, length: int = 8, **sections: Any) -> RunConfig:
    """Return a run of a model, none of which is read from disk; sections may be given in part."""
    data = {"sources": {"none": {"path": "none"}}, "tokenizer": "none", "sequence_length": length}
    settings: dict[str, Any] = {"run_dir": "unused", "model": model, "data": data}
    train = {"num_steps": 1, "batch_size": 4, **sections.pop("train", {})}
    return RunConfig.model_validate({**settings, "train": train, **sections})
