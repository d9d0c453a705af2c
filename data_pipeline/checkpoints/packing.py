"""Documents in rows of one length, several in a row, in their order: one program does for all, and
what is computed does not depend on who works on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np

Item = TypeVar("Item")


class Place(NamedTuple, Generic[Item]):
    """Where an item's tokens are: columns [start, stop) of a row."""

    item: Item
    row: int
    start: int
    stop: int


@dataclass
class Packed(Generic[Item]):
    """Rows of tokens of several items.

    Attributes:
      tokens: int32 (rows, length).
      segments: int32 (rows, length): the number of each item in its row, from 1; 0 where nothing is.
      places: of the items, in order.
    """

    tokens: np.ndarray
    segments: np.ndarray
    places: list[Place[Item]] = field(default_factory=list)


def pack(
    items: Iterable[tuple[Item, list[int]]], *, rows: int, length: int
) -> Iterator[Packed[Item]]:
    """Yield items in rows, each behind the one before it where there is room; none is divided.

    Args:
      items: and their tokens, 1 to `length` of them.
      rows: of an array; the last array is as large as the others.
      length: tokens of a row.
    """
    packed: Packed[Item] = _empty(rows, length)
    row = filled = number = 0
    for item, ids in items:
        if filled + len(ids) > length:
            row, filled, number = row + 1, 0, 0
        if row == rows:
            yield packed
            packed, row = _empty(rows, length), 0
        number += 1
        columns = slice(filled, filled + len(ids))
        packed.tokens[row, columns], packed.segments[row, columns] = ids, number
        packed.places.append(Place(item, row, columns.start, columns.stop))
        filled = columns.stop
    if packed.places:
        yield packed


def _empty(rows: int, length: int) -> Packed[Item]:
    return Packed(np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32))
