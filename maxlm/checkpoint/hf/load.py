"""Published tensors onto devices: each process reads what its devices hold, a tensor at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from maxlm.checkpoint.hf.families.family import Part
from maxlm.checkpoint.hf.published import Published
from maxlm.checkpoint.hf.tensors.axes import region, take
from maxlm.checkpoint.hf.tensors.read_files import Tensor
from maxlm.sharding.parameters import map_parameters, named_parameters, partition_spec, with_value

Module = TypeVar("Module")

ON_HOST_BYTES = 2**28
"""Smaller parameters are put together in the host's memory; larger ones in place on their devices,
which takes a compilation for each shape and device.
"""

Box = tuple[range, ...]
"""Which indices of each dimension of a parameter a device holds, or a tensor gives."""


def load(
    published: Published,
    declared: Module,
    mesh: Mesh,
    advance: Callable[[int], None] | None = None,
) -> Module:
    """Return the decoder with the published values, each parameter laid out as it is declared.

    In memory at a time, besides what lies on the devices: one tensor, or what this process needs
    of it, and one device's share. Rows that were added to the vocabulary are zeros.

    Args:
      published: the folder.
      declared: the decoder of its model without values.
      mesh: the devices.
      advance: told how many more elements have been read.

    Raises:
      UserError: tensors are missing, not known, or of another shape; nothing has been read then.
    """
    names = iter(named_parameters(declared))
    values = load_each(published, declared, mesh, advance)

    def loaded(parameter: Any) -> Any:
        (path, _), (found, value) = next(names), next(values)
        assert path == found, "both follow the decoder's order"
        return with_value(parameter, value)

    return map_parameters(loaded, declared)


def load_each(
    published: Published,
    declared: Any,
    mesh: Mesh,
    advance: Callable[[int], None] | None = None,
) -> Iterator[tuple[str, jax.Array]]:
    """Yield the parameters of a decoder one after the other, by path; see `load`."""
    parts: dict[str, list[Part]] = {}
    for part in published.parts(declared):
        parts.setdefault(part.parameter, []).append(part)
    for path, parameter in named_parameters(declared):
        sharding = NamedSharding(mesh, partition_spec(parameter))
        shape, own = parameter.get_value(), parts.pop(path)
        yield (
            path,
            _load_parameter(shape, sharding, own, published.tensors, advance or _tell_nobody),
        )


def _tell_nobody(elements: int) -> None:
    del elements


def _load_parameter(
    declared: Any,
    sharding: NamedSharding,
    parts: Sequence[Part],
    tensors: Mapping[str, Tensor],
    advance: Callable[[int], None],
) -> jax.Array:
    shape, dtype = declared.shape, declared.dtype
    boxes = {
        device: tuple(range(*part.indices(size)) for part, size in zip(index, shape, strict=True))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
        if index is not None
    }
    held = sum(math.prod(map(len, box)) for box in boxes.values()) * dtype.itemsize
    on_host = held <= ON_HOST_BYTES
    shards = {
        device: _zeros([len(side) for side in box], dtype, None if on_host else device)
        for device, box in boxes.items()
    }
    for part in parts:
        given = _box_of(part)
        wanted = {device: _overlap(given, box) for device, box in boxes.items()}
        wanted = {device: box for device, box in wanted.items() if math.prod(map(len, box))}
        if wanted:
            values, around = _read(part, list(wanted.values()), tensors)
            for device, box in wanted.items():
                piece = values[tuple(_relative(box, around))]
                shards[device] = _with_piece(shards[device], piece, box, boxes[device])
            jax.block_until_ready([shards[device] for device in wanted])
        advance(math.prod(map(len, given)))
    arrays = [jax.device_put(shard, device) for device, shard in shards.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _zeros(shape: Sequence[int], dtype: Any, device: Any) -> Any:
    """Return zeros on a device, or on the host where that is None."""
    return np.zeros(shape, dtype) if device is None else jnp.zeros(shape, dtype, device=device)


def _with_piece(shard: Any, piece: np.ndarray, box: Box, own: Box) -> Any:
    """Return a shard, which is given away, with a piece of it in its place.

    Args:
      shard: of a device.
      piece: values.
      box: where they are in the parameter.
      own: where the shard is.
    """
    if isinstance(shard, np.ndarray):
        shard[tuple(_relative(box, own))] = piece
        return shard
    starts = [side.start - whole.start for side, whole in zip(box, own, strict=True)]
    return _written(shard, jax.device_put(piece, shard.sharding), starts)


@functools.partial(jax.jit, donate_argnums=0)
def _written(shard: jax.Array, piece: jax.Array, starts: list[int]) -> jax.Array:
    """Write a piece into a shard, in place."""
    return lax.dynamic_update_slice(shard, piece.astype(shard.dtype), starts)


def _read(
    part: Part, boxes: Sequence[Box], tensors: Mapping[str, Tensor]
) -> tuple[np.ndarray, Box]:
    """Read what is within the smallest box around some boxes, in the parameter's dimensions."""
    around = tuple(
        range(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )
    own = around[len(part.place) :]
    ranges = {
        letter: side
        for letter, side in zip(part.axes.ours, own, strict=True)
        if letter not in part.named
    }
    tensor = tensors[part.tensor].read(region(part.dims, ranges))
    values = take(tensor, part.dims, part.axes, ranges)
    return values.reshape([len(side) for side in around]), around


def _box_of(part: Part) -> Box:
    """Return which part of its parameter a tensor gives."""
    own = [
        range(part.named[letter], part.named[letter] + 1)
        if letter in part.named
        else range(part.sizes[letter])
        for letter in part.axes.ours
    ]
    return (*(range(index, index + 1) for index in part.place), *own)


def _overlap(one: Box, other: Box) -> Box:
    return tuple(
        range(max(a.start, b.start), max(min(a.stop, b.stop), a.start, b.start))
        for a, b in zip(one, other, strict=True)
    )


def _relative(box: Box, around: Box) -> Iterator[slice]:
    for side, whole in zip(box, around, strict=True):
        yield slice(side.start - whole.start, side.stop - whole.start)
