"""TPU slices that are not here: what they are made of, and devices to compile for.

libtpu compiles for any slice on any Linux machine. It has to be told how the slice is wired:
without wrap-around links the compiler takes other algorithms for its collectives, which move half
as much again.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from maxlm.config.errors import UserError
from maxlm.devices import CHIPS, Chip
from maxlm.runtime import hush_libtpu

# Slices of three dimensions are made of 4x4x4 blocks, joined and closed to rings by optical
# switches; those of two dimensions have wires along a full side alone.
_BLOCK_SIDE = 4
_FULL_SIDE = 16
_HOST_BOUNDS = (2, 2, 1)


class Topology(NamedTuple):
    """A TPU slice, or several: `v5p:4x4x4` is 64 chips."""

    kind: str
    sides: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """What it is made of."""
        return CHIPS[self.kind]

    @property
    def device_count(self) -> int:
        """JAX devices of all slices."""
        return math.prod(self.sides) * self.chip.devices * self.slices

    @property
    def wrap(self) -> tuple[bool, ...]:
        """For each of three dimensions, whether its chips form rings."""
        if self.chip.dimensions == 3:
            return (all(side % _BLOCK_SIDE == 0 for side in self.sides),) * 3
        return (*(side == _FULL_SIDE for side in self.sides), False)

    def __str__(self) -> str:
        name = f"{self.kind}:{'x'.join(str(side) for side in self.sides)}"
        return f"{self.slices} slices of {name}" if self.slices > 1 else name


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Read `KIND:AxBxC`.

    Raises:
      UserError: no such kind, or sides that its slices cannot have.
    """
    kind, _, shape = text.partition(":")
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind.lower(), CHIPS, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"--topology {text}: no TPU is called {kind!r}; {hint}known are {', '.join(CHIPS)}"
        )
    dimensions = CHIPS[kind].dimensions
    example = f"{kind}:4x4x4" if dimensions == 3 else f"{kind}:4x4"
    sides = shape.split("x")
    if len(sides) != dimensions or not all(
        side.isascii() and side.isdigit() and int(side) for side in sides
    ):
        raise UserError(
            f"--topology {text}: a slice of {kind} has {dimensions} sides; write it as {example}"
        )
    if slices < 1:
        raise UserError(f"--slices {slices} must be at least 1")
    topology = Topology(kind, tuple(int(side) for side in sides), slices)
    odd = [side for side, host in zip(topology.sides, _HOST_BOUNDS, strict=False) if side % host]
    if odd:
        near_sides = [
            str(-(-side // host) * host)
            for side, host in zip(topology.sides, (*_HOST_BOUNDS, 1), strict=False)
        ]
        cure = f"use {kind}:{'x'.join(near_sides)}"
        raise UserError(
            f"--topology {text}: the first two sides must be even, since a host has 2x2 chips; {cure}"
        )
    return topology


def devices_of(topology: Topology) -> list[Any]:
    """Return devices that programs can be compiled for but not run on.

    Raises:
      UserError: libtpu is not installed, or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "maxlm plan compiles with libtpu, which is not installed; run scripts/setup tpu (it needs no TPU, "
            "but Linux on x86_64)"
        )
    hush_libtpu()
    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=str(topology._replace(slices=1)),
            chip_config_name=topology.chip.config,
            chips_per_host_bounds=_HOST_BOUNDS,
            wrap=topology.wrap,
            **options,
        )
    except JaxRuntimeError as error:
        raise UserError(
            f"--topology {topology._replace(slices=1)}: libtpu refuses it: {error}"
        ) from error
    return list(described.devices)


def places(devices: Sequence[Any]) -> list[tuple[int, ...]]:
    """Return where each device is: its slice, then its chip's coordinates."""
    return [(getattr(device, "slice_index", 0), *device.coords) for device in devices]
