"""A number for the content of an array, the same on every mesh: array files carry no checksum of
their own.

    fingerprint(x) = sum over i of mix(bits(x[i]) ^ mix(i))  mod 2^32

with i the global row-major index. Sums mod 2^32 do not depend on their order, so every sharding
gives the same number, and the blocks that devices hold have numbers of their own that add up to it:
they are compared with what a block reads back as, without a word between processes. `mix` is a
bijection that scrambles all bits: a single changed element always changes the sum; several, or an
exchange, do so except with probability about 2^-32, whichever bits they are. (With weights in place
of the outer `mix`, flips of the highest bit would cancel in pairs: two signs would go unseen.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.jax_versions import vary_over
from maxlm.sharding.host import to_device

_ELEMENTS_AT_A_TIME = 2**18  # of a block on the host: temporaries stay in the processor's cache


class Block(NamedTuple):
    """A part of an array that one device of this process holds.

    Attributes:
      place: where it is in the array, a slice for each axis.
      nbytes: its size.
      fingerprint: its share of the array's.
      finite: it has no nan and no infinity.
    """

    place: tuple[slice, ...]
    nbytes: int
    fingerprint: int
    finite: bool


def fingerprint_blocks(arrays: dict[str, jax.Array]) -> dict[str, list[Block]]:
    """Return the blocks of each array that this process is the first to hold: those of all
    processes are the array once.

    Devices compute what they hold, with no communication.
    """
    numbers = {name: _on_devices(array) for name, array in arrays.items()}
    owned = {
        name: [shard for shard in array.addressable_shards if shard.replica_id == 0]
        for name, array in arrays.items()
    }
    placed = {
        name: {shard.device: shard.data for shard in array.addressable_shards}
        for name, array in numbers.items()
    }
    read = jax.device_get({n: [placed[n][s.device] for s in owned[n]] for n in owned})
    return {
        name: [
            Block(shard.index, shard.data.nbytes, int(pair[0, 0]), bool(pair[0, 1]))
            for shard, pair in zip(owned[name], read[name], strict=True)
        ]
        for name in owned
    }


def fingerprint_values(values: np.ndarray, place: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    """Return the fingerprint of a block on the host.

    Args:
      values: of the block.
      place: where it is in the array.
      shape: of the whole array.
    """
    if not shape:
        values, place, shape = values.reshape(1), (slice(None),), (1,)
    places = [
        (np.arange(part.start or 0, (part.start or 0) + size) * (stride % 2**32)).astype(np.uint32)
        for part, size, stride in zip(place, values.shape, _strides(shape), strict=True)
    ]
    row = np.zeros((), np.uint32)
    for more in places[1:]:
        row = row[..., None] + more
    rows = max(1, _ELEMENTS_AT_A_TIME // max(1, row.size))
    total = 0
    for first in range(0, values.shape[0], rows):
        part = np.ascontiguousarray(values[first : first + rows])
        first_place = places[0][first : first + rows].reshape(-1, *[1] * (values.ndim - 1))
        bits = part.view(f"uint{8 * part.itemsize}").astype(np.uint32)
        total += int(np.sum(scramble(bits, first_place + row), dtype=np.uint32))
    return total % 2**32


def _on_devices(array: jax.Array) -> jax.Array:
    """Return uint32[devices, 2], a row on each device of `array`: the fingerprint of its block, and
    1 if all of it is finite.
    """
    sharding = array.sharding
    if isinstance(sharding, NamedSharding):
        return _program(sharding.mesh, sharding.spec)(array)
    (device,) = sharding.device_set  # else its blocks have no names of axes to be told by
    return _program(Mesh(np.array([device]), ("device",)), P())(array)


@functools.cache
def _program(mesh: Mesh, spec: P) -> Callable[[jax.Array], jax.Array]:
    """Return a jitted function of arrays that lie as `spec` says."""
    mapped = jax.shard_map(
        functools.partial(_summarise, mesh=mesh, spec=spec),
        mesh=mesh,
        in_specs=spec,
        out_specs=P(mesh.axis_names),
    )
    return jax.jit(lambda array: mapped(to_device(array)))


def _summarise(block: jax.Array, *, mesh: Mesh, spec: P) -> jax.Array:
    axes = [(names,) if isinstance(names, str) else tuple(names or ()) for names in spec]
    axes += [()] * (block.ndim - len(axes))
    parts = [math.prod(mesh.shape[name] for name in names) for names in axes]
    shape = tuple(size * count for size, count in zip(block.shape, parts, strict=True))
    index = jnp.zeros(block.shape, jnp.uint32)
    for axis, (names, stride) in enumerate(zip(axes, _strides(shape), strict=True)):
        places = lax.broadcasted_iota(jnp.uint32, block.shape, axis)
        if names:
            first = lax.axis_index(names) * block.shape[axis]
            places = places + first.astype(jnp.uint32)
        index = index + places * jnp.uint32(stride % 2**32)
    number = jnp.sum(scramble(bits_of(block), index), dtype=jnp.uint32)
    finite = (
        jnp.all(jnp.isfinite(block)) if jnp.issubdtype(block.dtype, jnp.inexact) else jnp.bool_(1)
    )
    pair = [vary_over(x, mesh.axis_names) for x in (number, finite.astype(jnp.uint32))]
    return jnp.stack(pair)[None]


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def bits_of(array: jax.Array) -> jax.Array:
    """Reinterpret every element as a uint32, by zero extension of its bits; element-wise one to
    one.
    """
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    width = 8 * array.dtype.itemsize
    unsigned = lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}"))
    return unsigned.astype(jnp.uint32)


def scramble(bits: Any, index: Any) -> Any:
    """Return what elements add to a fingerprint.

    Args:
      bits: of each element, as uint32s of jax or numpy.
      index: where it is, likewise.
    """
    return _mix(bits ^ _mix(index))


def _mix(numbers: Any) -> Any:
    """Scramble uint32s: the finaliser of MurmurHash3, a bijection."""
    numbers = (numbers ^ (numbers >> 16)) * np.uint32(0x85EBCA6B)
    numbers = (numbers ^ (numbers >> 13)) * np.uint32(0xC2B2AE35)
    return numbers ^ (numbers >> 16)
