"""The device mesh: six axes that always exist, so no code asks whether one is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import MeshConfig

AXES = ("data", "stage", "fsdp", "expert", "context", "tensor")
BATCH_AXES = ("data", "fsdp", "expert")
"""Axes that split the sequences of a batch."""
TOKEN_AXES = (*BATCH_AXES, "context")
"""Axes over which devices hold different tokens."""
FSDP_AXES = ("fsdp", "expert", "context")
"""Axes that split dense parameters, their gradients and optimizer slots: all but the one that replicates them."""
EXPERT_FSDP_AXES = ("fsdp", "context")
"""Axes that split the parameters of experts besides `expert`, which holds different experts."""
BATCH_SPEC = P(BATCH_AXES, "context")
"""Layout of every (B, T) array of a batch."""


def build_mesh(sizes: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Lay devices out along the six axes, neighbours on the fast network innermost.

    Args:
      sizes: devices along each axis, without -1 (see `maxlm.config.resolve_mesh`).
      devices: as many devices as the product of the sizes; all of them by default.
    """
    shape = tuple(getattr(sizes, axis) for axis in AXES)
    if devices is not None:
        # As given: tests and tools name the devices they want.
        return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the layout of every (B, T) array of a batch."""
    return NamedSharding(mesh, BATCH_SPEC)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the layout of an array that every device holds whole."""
    return NamedSharding(mesh, P())
