"""A model at another width: what its layers' sections mark as following `embed_dim` follows it."""

from __future__ import annotations

import math
from typing import Any

from maxlm.config.model import ModelConfig
from maxlm.config.section import Width


def at_width(model: ModelConfig, width: int, *, multiple_of: int = 1) -> dict[str, Any]:
    """Return the settings of the model with `embed_dim` = width and everything that follows it.

    Args:
      model: the model.
      width: of the residual stream.
      multiple_of: what hidden units are rounded to.
    """
    settings = model.model_dump(mode="json", exclude_unset=True)
    factor = width / model.embed_dim
    settings["embed_dim"] = width
    settings["block"] = _scaled(model.block, settings["block"], factor, multiple_of)
    segments = zip(model.segments, settings.get("segments", ()), strict=False)
    for segment, plain in segments:
        plain["pattern"] = [
            _scaled(block, own, factor, multiple_of)
            for block, own in zip(segment.pattern, plain["pattern"], strict=True)
        ]
    if model.mtp:
        mtp = settings["mtp"]
        mtp["block"] = _scaled(model.mtp.block, mtp["block"], factor, multiple_of)
    return settings


def _scaled(section: Any, plain: dict[str, Any], factor: float, multiple: int) -> dict[str, Any]:
    """Return a section's settings, those that are marked `Width.SCALES` multiplied."""
    result, before = dict(plain), 1
    for name, field in type(section).model_fields.items():
        if name not in plain:
            continue
        value = getattr(section, name)
        if Width.SCALES in field.metadata:
            # Counts of heads stay as they divide; hidden units take the multiple.
            unit = multiple if value % multiple == 0 else 1
            result[name] = before = max(round(value * factor / unit), 1 if value else 0) * unit
        elif Width.DIVIDES in field.metadata:
            result[name] = _nearest_divisor(before, value * factor)
        elif isinstance(plain[name], dict) and hasattr(type(value), "model_fields"):
            result[name] = _scaled(value, plain[name], factor, multiple)
        elif isinstance(value, tuple) and value and hasattr(type(value[0]), "model_fields"):
            pairs = zip(value, plain[name], strict=True)
            result[name] = [_scaled(one, own, factor, multiple) for one, own in pairs]
    return result


def _nearest_divisor(whole: int, wanted: float) -> int:
    divisors = [one for one in range(1, whole + 1) if whole % one == 0]
    return min(divisors, key=lambda one: (abs(math.log(one / wanted)), -one))
