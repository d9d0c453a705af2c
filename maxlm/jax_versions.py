"""What differs between the JAX versions maxlm runs on (0.10.2, 0.11), in one place.

Below everything but the config.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

FUSED_GATHERS = r"TPU" if jax.__version_info__ < (0, 11) else r"TPU v5( lite|e)"
"""Kinds of devices, the start of their names, whose compiler runs all-gathers behind the matrix
products before them.

On all but v5e the libtpu of jax 0.11 refuses
`xla_tpu_enable_async_collective_fusion_fuse_all_gather`: it may hang, or give wrong results there.
Without it gathers are in front on v5p and v6e, in the background on v7x (a scan of layers).
"""


def varying_axes(*arrays: jax.Array) -> frozenset[str]:
    """Return the mesh axes over which any of the arrays may differ between devices, inside a
    shard_map.
    """
    types = [jax.typeof(array) for array in arrays]
    # One attribute before and after jax 0.10 moved it.
    return frozenset().union(
        *(t.manual_axis_type.varying if hasattr(t, "manual_axis_type") else t.vma for t in types)
    )


def vary_over(array: jax.Array, axes: frozenset[str] | tuple[str, ...]) -> jax.Array:
    """Mark an array as varying over the axes over which it does not yet (the transpose sums over
    just these).
    """
    missing = tuple(sorted(frozenset(axes) - varying_axes(array)))
    return lax.pcast(array, missing, to="varying") if missing else array


def varying_zeros(shape: tuple[int, ...], *like: jax.Array) -> jax.Array:
    """Return fp32 zeros that vary over the mesh axes that the given arrays vary over (a loop's
    carry must).
    """
    return vary_over(jnp.zeros(shape, jnp.float32), varying_axes(*like))


def shape_like(shape: tuple[int, ...], dtype: Any, *like: jax.Array) -> jax.ShapeDtypeStruct:
    """Return the type of a kernel's result that varies over the mesh axes that the given arrays
    vary over.
    """
    axes = varying_axes(*like)
    if hasattr(jax.sharding, "ManualAxisType"):
        return jax.ShapeDtypeStruct(
            shape, dtype, manual_axis_type=jax.sharding.ManualAxisType(varying=axes)
        )
    return jax.ShapeDtypeStruct(shape, dtype, vma=axes)  # type: ignore[call-arg]


def call_on_each_device(
    program: Callable[..., Any], *arrays: Any, platform: str, custom_calls: Sequence[str] = ()
) -> Any:
    """Return program(*arrays) on each device, also where the program does not say what its results
    vary over.

    A `shard_map` that checks this refuses kernels that were not written for it. In one, the program
    is compiled for one device, as a program of its own; its results vary over all axes that the
    arguments vary over.

    Args:
      program: of one device, without collectives.
      *arrays: trees of arrays.
      platform: cpu, cuda or tpu.
      custom_calls: names of calls in the program that `jax.export` does not guarantee to be there
        in later versions.
    """
    axes = varying_axes(*jax.tree.leaves(arrays))
    if not axes:
        return program(*arrays)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
    unchecked = [export.DisabledSafetyCheck.custom_call(name) for name in custom_calls]
    exporter = export.export(jax.jit(program), platforms=[platform], disabled_checks=unchecked)
    # What checks is a setting of the thread that traces: a thread of its own does not have it.
    with ThreadPoolExecutor(1) as thread:
        exported = thread.submit(exporter, *shapes).result()
    return jax.tree.map(lambda x: vary_over(x, axes), exported.call(*arrays))
