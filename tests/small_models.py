"""Models for tests, from a few flat sizes."""

from __future__ import annotations

from typing import Any

from maxlm.config.schema import RunConfig


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
