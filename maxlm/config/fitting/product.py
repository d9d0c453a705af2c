"""A mesh whose sizes do not multiply to the device count, and one near it whose sizes do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from maxlm.config.divisible import divisible, near_divisors
from maxlm.config.errors import Problem


def wrong_product(sizes: Mapping[str, int], device_count: int) -> Problem:
    """Explain a mesh whose sizes do not multiply to the device count, and give one near it that
    does.
    """
    given = {f"mesh.{axis}": size for axis, size in sizes.items() if size > 1}
    if -1 in sizes.values():
        return replace(next(divisible("the device count", device_count, given)), path="mesh")
    fixed = math.prod(given.values())
    fits = []
    for axis, size in {"mesh.fsdp": 1, **given}.items():
        if device_count % (fixed // size) == 0:
            fits.append(f"{axis}={device_count // (fixed // size)}")
    names = " * ".join(f"{axis}={size}" for axis, size in given.items()) or "all axes"
    fits = fits or [f"for example {_near_mesh(given, device_count)}"]
    text = f"mesh: {names}{f' = {fixed}' if len(given) != 1 else ''} must equal the device count, {device_count}"
    fake = f"runtime.device_count={fixed} to try it on fake CPU devices"
    return Problem("mesh", f"{text}; use {', or '.join(fits)}, or {fake}")


def _near_mesh(given: Mapping[str, int], device_count: int) -> str:
    """Return sizes at most those given that multiply to the device count, the rest on fsdp."""
    left, near = device_count, {"mesh.fsdp": 1}
    for axis, size in given.items():
        near[axis] = near_divisors(left, size)[0]
        left //= near[axis]
    near["mesh.fsdp"] *= left
    return " ".join(f"{axis}={size}" for axis, size in near.items())
