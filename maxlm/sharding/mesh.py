"""The device mesh: six axes that always exist, so no code asks whether one is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.config.errors import UserError
from maxlm.config.schema import MESH_AXES, MeshConfig

AXES = MESH_AXES
BATCH_AXES = ("data", "fsdp", "expert")
"""Axes that split the sequences of a batch."""
TOKEN_AXES = (*BATCH_AXES, "context")
"""Axes over which devices hold different tokens."""
REPORT_AXES = (*TOKEN_AXES, "tensor")
"""Axes over which devices hold different tokens between `leave` and `enter`, where reports of
layers are made.
"""
FSDP_AXES = ("fsdp", "expert", "context")
"""Axes that split dense parameters, their gradients and optimizer slots: all but the one that
replicates them.
"""
EXPERT_FSDP_AXES = ("fsdp", "context")
"""Axes that split the parameters of experts besides `expert`, which holds different experts."""
DECODING_AXES = (*BATCH_AXES, "stage", "context")
"""Axes that split the sequences that are decoded together; `stage` and `context` have size 1 then.
"""
BATCH_SPEC = P(BATCH_AXES, "context")
"""Layout of every (B, T) array of a batch."""


def build_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Lay devices out along the six axes.

    Args:
      config: devices along each axis, without -1 (see `maxlm.config.checks.resolve_mesh`).
      devices: as many devices as the product of the sizes; all of them by default.

    Raises:
      UserError: see `lay_out`.
    """
    grid = lay_out(config, jax.devices() if devices is None else devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def lay_out(config: MeshConfig, devices: Sequence[Any]) -> np.ndarray:
    """Order devices so that neighbours along inner axes are neighbours in the network.

    TPU slices are connected by the data centre's network alone: `data`, which carries one reduction
    of gradient shards a step, is laid across them, and every other axis stays within a slice.

    Raises:
      UserError: `mesh.data` cannot be laid across the slices.
    """
    shape = tuple(config.sizes.values())
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1 or devices[0].platform != "tpu":
        return np.asarray(
            mesh_utils.create_device_mesh(shape, list(devices), allow_split_physical_axes=True)
        )
    if config.data % slices:
        raise UserError(
            f"mesh.data={config.data} must be a multiple of {slices}, the number of TPU slices, because only `data` "
            f"goes over the network between them; use mesh.data={-(-config.data // slices) * slices} and make another "
            "axis smaller, or mesh.fsdp=-1 to take what is left"
        )
    within, across = (config.data // slices, *shape[1:]), (slices, *(1,) * (len(shape) - 1))
    grid = mesh_utils.create_hybrid_device_mesh(
        within, across, list(devices), allow_split_physical_axes=True
    )
    return np.asarray(grid)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the layout of every (B, T) array of a batch."""
    return NamedSharding(mesh, BATCH_SPEC)
