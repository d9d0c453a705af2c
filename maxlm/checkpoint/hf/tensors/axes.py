"""How the axes of a published tensor and those of a parameter correspond, as a pattern of letters.

    "(n h) d -> d n h"     the tensor's first dimension is heads times head_dim, ours are apart
    "[f] d -> d f"         tensors of several rows of a table lie one behind the other along this
                           dimension, in the table's order: gate and up, or query, key and value
    "(n [1] h) d -> d n h" likewise within each head: query, key, value, query, key, value, ...
    "1 d -> d"             a dimension of one
    "f d -> e d f"         e stands in the tensor's name: one tensor for each expert

The same pattern takes values out of a tensor and puts them into it, so that import and export are
each other's inverse bit for bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

Ranges = Mapping[str, range]
"""For each letter, which of its indices are meant."""

_ONE = "1"


class Dim(NamedTuple):
    """One dimension of a published tensor, made of letters.

    Attributes:
      size: of the whole dimension.
      letters: outermost first.
      strides: what one step of each letter means along the dimension.
      offset: where this row's part begins.
    """

    size: int
    letters: tuple[str, ...]
    strides: tuple[int, ...]
    offset: int

    def indices(self, ranges: Ranges) -> np.ndarray:
        """Return where along the dimension the letters' ranges lie, flat, outermost letter first."""
        places = np.asarray([self.offset])
        for letter, stride in zip(self.letters, self.strides, strict=True):
            steps = stride * np.arange(ranges[letter].start, ranges[letter].stop)
            places = np.add.outer(places, steps).reshape(-1)
        return places


class Axes:
    """A parsed pattern.

    Attributes:
      ours: the letters of the parameter's dimensions.
      named: those of them that stand in the tensor's name instead of its shape.
    """

    def __init__(self, pattern: str):
        left, _, right = pattern.partition("->")
        self.ours = tuple(right.split())
        # Each dimension is a list of items, an item a list of letters, and whether it is bracketed.
        self._dims = [_items(dim) for dim in re.findall(r"\[[^]]*\]|\([^)]*\)|\S+", left)]
        letters = [
            letter for dim in self._dims for item, _ in dim for letter in item if letter != _ONE
        ]
        self.named = tuple(letter for letter in self.ours if letter not in letters)
        assert set(letters) <= set(self.ours), pattern
        assert len(set(letters)) == len(letters), pattern

    def shared_size(self, sizes: Mapping[str, int]) -> int:
        """Return how much of the bracketed dimension is this row's; 0 if there is none."""
        brackets = [item for dim in self._dims for item, bracketed in dim if bracketed]
        assert len(brackets) <= 1, "one dimension is shared at most"
        return math.prod(_size(letter, sizes) for item in brackets for letter in item) * len(
            brackets
        )

    def dims(self, sizes: Mapping[str, int], *, offset: int, shared: int) -> tuple[Dim, ...]:
        """Return the dimensions of the tensor.

        Args:
          sizes: of each letter.
          offset: how much of the bracketed dimension belongs to rows before this one.
          shared: size of the bracketed dimension, all rows together.
        """
        return tuple(_dim(items, sizes, offset, shared) for items in self._dims)


def take(tensor: np.ndarray, dims: tuple[Dim, ...], axes: Axes, ranges: Ranges) -> np.ndarray:
    """Return a part of a parameter, its named letters left out.

    Args:
      tensor: what `region` of the same ranges cuts out of the published tensor.
      dims: its dimensions.
      axes: the pattern.
      ranges: the wanted indices of each letter.
    """
    for axis, dim in enumerate(dims):
        places = dim.indices(ranges)
        places = places - places.min()
        if len(places) < tensor.shape[axis] or not _is_row(places):
            tensor = np.take(tensor, places, axis=axis)
    letters = [letter for dim in dims for letter in dim.letters]
    apart = tensor.reshape([len(ranges[letter]) for letter in letters])
    order = [letters.index(letter) for letter in axes.ours if letter in letters]
    return apart.transpose(order)


def put(tensor: np.ndarray, part: np.ndarray, dims: tuple[Dim, ...], axes: Axes) -> None:
    """Write a parameter, its named letters left out, to its places in a published tensor."""
    letters = [letter for dim in dims for letter in dim.letters]
    ours = [letter for letter in axes.ours if letter in letters]
    sizes = dict(zip(ours, part.shape, strict=True))
    ranges = {letter: range(size) for letter, size in sizes.items()}
    moved = part.transpose([ours.index(letter) for letter in letters])
    places = [dim.indices(ranges) for dim in dims]
    moved = moved.reshape([len(place) for place in places])
    if all(_is_row(place) for place in places):
        tensor[tuple(slice(place[0], place[-1] + 1) for place in places)] = moved
    else:
        tensor[np.ix_(*places)] = moved


def region(dims: tuple[Dim, ...], ranges: Ranges) -> tuple[slice, ...]:
    """Return the smallest box of a published tensor that holds the letters' ranges."""
    places = [dim.indices(ranges) for dim in dims]
    return tuple(slice(int(place.min()), int(place.max()) + 1) for place in places)


def _items(dim: str) -> list[tuple[tuple[str, ...], bool]]:
    """Split a dimension: "(n [k h])" -> [(("n",), False), (("k", "h"), True)]."""
    if dim.startswith("["):
        return [(tuple(re.findall(r"\w", dim)), True)]
    return [
        (tuple(re.findall(r"\w", item)), item.startswith("["))
        for item in re.findall(r"\[[^]]*\]|\w", dim)
    ]


def _dim(
    items: list[tuple[tuple[str, ...], bool]], sizes: Mapping[str, int], offset: int, shared: int
) -> Dim:
    letters, strides, start, size = list[str](), list[int](), 0, 1
    for item, bracketed in reversed(items):
        inner = size
        for letter in reversed(item):
            if letter != _ONE:
                letters.insert(0, letter)
                strides.insert(0, inner)
            inner *= _size(letter, sizes)
        if bracketed:
            start = offset * size
            inner = shared * size
        size = inner
    return Dim(size, tuple(letters), tuple(strides), start)


def _size(letter: str, sizes: Mapping[str, int]) -> int:
    return 1 if letter == _ONE else sizes[letter]


def _is_row(places: np.ndarray) -> bool:
    """Return whether indices follow each other one by one."""
    return bool((np.diff(places) == 1).all())
