"""Find equal keys in many files with bounded memory: every file is sorted by key, so a part of the
key space is one slice of each.

Keys are hashes of 64 or 128 bits, so equal shares of the key space hold about equally many. A row
is named by one number, its shard's and its own (`row_names`). This is the whole external sort: a
shard sorts its keys once, and a part merges its slices; nothing is ever rewritten.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import safe_open

from data_pipeline.storage.arrays import array_names, read_rows

PEAK_BYTES_PER_KEY = 96
"""What `find_copies` takes at most for each key of its part, all copies that numpy makes included."""

KEYS_OF_A_TASK, TASKS_WANTED = 2**16, 16
"""A reduction in one part would be one process's work; a smaller part is not worth a task."""

_ROW_BITS = np.uint64(32)


@dataclass(frozen=True)
class Part:
    """The share `index` of `count` equal shares of the key space."""

    index: int
    count: int

    @property
    def first(self) -> int:
        """The least 64-bit key of the share."""
        return -(-(self.index << 64) // self.count)

    @property
    def last(self) -> int:
        """The greatest."""
        return -(-((self.index + 1) << 64) // self.count) - 1


@dataclass(frozen=True)
class KeyFile:
    """The sorted keys of one shard: a safetensors file that `sorted_table` made the arrays of."""

    shard: int
    path: Path


class Copies(NamedTuple):
    """Rows that hold a key which another row has first.

    Attributes:
      rows: uint64, named as by `row_names`, ascending.
      firsts: uint64, the row that holds the key of each first.
    """

    rows: np.ndarray
    firsts: np.ndarray


def row_names(shard: int, rows: np.ndarray) -> np.ndarray:
    """Name rows (below 2^32) of a shard by one uint64 each, in the order (shard, row)."""
    return (np.uint64(shard) << _ROW_BITS) | rows.astype(np.uint64)


def shards_of(names: np.ndarray) -> np.ndarray:
    """Return the shard of each named row."""
    return names >> _ROW_BITS


def rows_of(names: np.ndarray) -> np.ndarray:
    """Return the row within its shard of each named row, uint32."""
    return names.astype(np.uint32)


def of_shard(ascending: np.ndarray, shard: int) -> slice:
    """Return where a shard's rows stand among ascending names."""
    ends = np.array([shard, shard + 1], np.uint64) << _ROW_BITS
    return slice(*np.searchsorted(ascending, ends).tolist())


def slice_of_shard(path: Path, name: str, shard: int) -> slice:
    """Return where a shard's rows stand among the ascending names in a file."""
    return _bisected(path, name, [shard << 32, (shard + 1) << 32])


def slice_of_part(path: Path, name: str, part: Part) -> slice:
    """Return where a part of the key space stands among the ascending keys in a file."""
    return _bisected(path, name, [part.first, part.last + 1])


def parts_needed(num_keys: int, memory_bytes: int) -> int:
    """Return into how many parts the key space is cut: one fits the memory, and where there are
    many keys, several processes have work at a time.
    """
    fits = math.ceil(num_keys * PEAK_BYTES_PER_KEY / memory_bytes)
    return max(1, fits, min(num_keys // KEYS_OF_A_TASK, TASKS_WANTED))


def sorted_table(
    name: str, rows: np.ndarray, high: np.ndarray, low: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the arrays of a table of keys: ascending, and which row each is of.

    Args:
      name: of the table within the file.
      rows: (num_keys,), ascending and below 2^32.
      high: uint64 (num_keys,), the key, or its upper half.
      low: uint64 (num_keys,), the lower half of 128 bits.
    """
    order = np.argsort(high, kind="stable") if low is None else np.lexsort((low, high))
    columns = {"high": high, **({} if low is None else {"low": low})}
    table = {f"{name}.{half}": column[order] for half, column in columns.items()}
    return table | {f"{name}.row": rows[order].astype(np.uint32)}


def find_copies(files: Sequence[KeyFile], name: str, part: Part) -> Copies:
    """Return all rows whose key an earlier row has, for one table and one part of the key space.

    Args:
      files: in the order of precedence; within a file the lower row comes first.
    """
    columns: list[np.ndarray] = []
    within: list[np.ndarray] = []
    for file in files:
        keys, names = _slice(file, name, part)
        again = np.zeros(names.size, bool)
        again[1:] = (keys[:, 1:] == keys[:, :-1]).all(axis=0)
        # Only a shard's first row of a key goes on: a key that stands in every document is then
        # met once a shard, not once a document.
        leaders = np.flatnonzero(~again)
        if again.any():
            leader = names[leaders][np.cumsum(~again)[again] - 1]
            within.append(np.stack([names[again], leader]))
        columns.append(np.concatenate([keys[:, leaders], names[None, leaders]]))
    table = np.concatenate(columns, axis=1) if columns else np.empty((2, 0), np.uint64)
    return _with_copies_within(_across(table), within)


def _across(table: np.ndarray) -> Copies:
    """Return the copies among rows (keys..., name) that come in the order of precedence."""
    order = np.lexsort(table[-2::-1])
    table = table[:, order]
    again = np.zeros(order.size, bool)
    again[1:] = (table[:-1, 1:] == table[:-1, :-1]).all(axis=0)
    first = table[-1, np.flatnonzero(~again)][np.cumsum(~again) - 1]
    return _ascending(table[-1, again], first[again])


def _with_copies_within(across: Copies, within: Sequence[np.ndarray]) -> Copies:
    """Add the copies of a shard's own rows, whose first may itself be a copy of another shard's."""
    if not within:
        return across
    rows, leaders = np.concatenate(within, axis=1)
    if across.rows.size:
        place = np.searchsorted(across.rows, leaders).clip(max=across.rows.size - 1)
        leaders = np.where(across.rows[place] == leaders, across.firsts[place], leaders)
    return _ascending(np.concatenate([across.rows, rows]), np.concatenate([across.firsts, leaders]))


def _ascending(rows: np.ndarray, firsts: np.ndarray) -> Copies:
    order = np.argsort(rows, kind="stable")
    return Copies(rows[order], firsts[order])


def _slice(file: KeyFile, name: str, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys, uint64 (1 or 2, num), and the names of a file's rows in a part."""
    where = slice_of_part(file.path, f"{name}.high", part)
    halves = [f"{name}.{half}" for half in ("high", "low")]
    keys = [
        read_rows(file.path, half, where.start, where.stop)
        for half in halves
        if half in array_names(file.path)
    ]
    rows = read_rows(file.path, f"{name}.row", where.start, where.stop)
    return np.stack(keys), row_names(file.shard, rows)


def _bisected(path: Path, name: str, bounds: Sequence[int]) -> slice:
    """Return where numbers of two bounds stand in an ascending array, of which a few are read."""
    with safe_open(path, framework="numpy") as file:
        ascending = file.get_slice(name)
        (count,) = ascending.get_shape()
        places = [
            bisect_left(range(count), bound, key=lambda place: int(ascending[place : place + 1][0]))
            for bound in bounds
        ]
    return slice(*places)
