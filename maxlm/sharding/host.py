"""Host memory: arrays that lie beside the processor while the device does not need them.

Where an array lies is part of its type inside a jit, so nothing here needs to be told what is
offloaded.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding

HOST_MEMORY = "pinned_host"
"""The memory that devices read and write by themselves, as JAX calls it."""

Tree = TypeVar("Tree")


def has_host_memory(device: Any) -> bool:
    """Return whether a device can keep arrays in host memory."""
    return HOST_MEMORY in {memory.kind for memory in device.addressable_memories()}


def on_host(sharding: NamedSharding) -> NamedSharding:
    """Return the same layout over devices, each shard in its device's host memory."""
    return sharding.with_memory_kind(HOST_MEMORY)


def is_on_host(array: jax.Array) -> bool:
    """Return whether an array lies in host memory, inside a jit."""
    return bool(jax.typeof(array).memory_space == jax.memory.Space.Host)


def to_device(tree: Tree) -> Tree:
    """Copy what lies in host memory onto the device, inside a jit: nothing can be computed with it
    elsewhere.
    """
    result: Tree = jax.tree.map(lambda x: _move(x, jax.memory.Space.Device), tree)
    return result


def to_place_of(tree: Tree, like: Tree) -> Tree:
    """Copy arrays to the memory in which those of `like` lie, inside a jit."""
    result: Tree = jax.tree.map(
        lambda x, place: _move(x, jax.typeof(place).memory_space), tree, like
    )
    return result


def _move(array: jax.Array, space: Any) -> jax.Array:
    return array if jax.typeof(array).memory_space == space else jax.device_put(array, space)
