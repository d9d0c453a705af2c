"""A model's parameters, lying as what they are used for wants them."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from maxlm.config.errors import UserError
from maxlm.layers.stack import Segment, Stack
from maxlm.models.decoder import Decoder
from maxlm.sharding.parameters import is_parameter, with_value

Tree = TypeVar("Tree")


class Weights:
    """A decoder on its devices.

    Whole sequences run through layers that are stacked, as in training. On one CPU the next tokens
    of several texts would pay for that: in a loop over a stack its compiler copies each layer's
    matrices out of it, for as long as it multiplies a few rows with them, and what mixers keep out
    and back (`benchmarks/README.md`). There they have every layer apart. For one text both ways are
    about equally fast, and the loop compiles sooner. Parameters lie in one of the two ways at a
    time, and are moved one after the other when the other way is asked for: one at a time is held
    twice. So is what somebody else keeps: the caller, or a text that is not at its end.

    Args:
      decoder: with its layers stacked; the caller must not keep it.
      mesh: its devices.
    """

    def __init__(self, decoder: Decoder, mesh: Mesh):
        self._decoder = decoder
        self._declared = without_values(decoder.stack)
        self._on_one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
        self._apart: bool | None = False  # None while they are moved

    def stacked(self) -> Decoder:
        """Return it for whole sequences, and for tokens of one text."""
        return self._lying(apart=False)

    def for_tokens(self, rows: int) -> Decoder:
        """Return it for `maxlm.layers.stack.decode_stack` of so many texts."""
        return self._lying(apart=rows > 1 and self._on_one_cpu)

    def _lying(self, *, apart: bool) -> Decoder:
        if self._apart is None:
            raise UserError(
                "the model was interrupted while its parameters were moved, and they are lost; load it again"
            )
        if self._apart != apart:
            self._apart = None
            flat = [
                _Flat(*jax.tree.flatten(part, is_leaf=is_parameter)) for part in self._decoder.stack
            ]
            self._decoder = self._decoder.with_stack(nnx.List([]))
            self._decoder.stack = _apart(flat) if apart else _together(flat, self._declared)
            self._apart = apart
        return self._decoder


class _Flat(NamedTuple):
    """A segment: its parameters, which nothing else holds, and how they make it up."""

    parameters: list[Any]
    structure: Any

    def pop(self, index: int) -> nnx.Param:
        parameter: nnx.Param = self.parameters[index]
        self.parameters[index] = None
        return parameter


def _apart(segments: list[_Flat]) -> Stack:
    """Return a segment for every row of a segment."""

    def rows_of(parameter: nnx.Param) -> list[nnx.Param]:
        facts = dict(parameter.get_metadata())
        del facts["layers"]
        return [nnx.Param(row, **facts) for row in jnp.unstack(parameter.get_value())]

    layers: list[Segment] = []
    for segment in segments:
        places = [rows_of(segment.pop(index)) for index in range(len(segment.parameters))]
        layers += [jax.tree.unflatten(segment.structure, row) for row in zip(*places, strict=True)]
    return nnx.List(layers)


def _together(layers: list[_Flat], declared: Stack) -> Stack:
    """Return the stack that `_apart` took apart, as declared."""
    segments, first = [], 0
    for segment in declared:
        shapes, structure = jax.tree.flatten(segment, is_leaf=is_parameter)
        rows = layers[first : first + shapes[0].get_value().shape[0]]
        first += len(rows)
        parameters = [
            with_value(shape, jnp.stack([row.pop(index).get_value() for row in rows]))
            for index, shape in enumerate(shapes)
        ]
        segments.append(jax.tree.unflatten(structure, parameters))
    return nnx.List(segments)


def without_values(tree: Tree) -> Tree:
    """Return a module with the shapes of its parameters."""
    shapes: Tree = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), tree)
    return shapes
