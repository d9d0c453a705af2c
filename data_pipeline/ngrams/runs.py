"""Count n-grams beyond memory: sorted runs on disk, merged block by block.

An n-gram of up to `order` words is two 64-bit numbers, so that numpy sorts n-grams as it sorts
numbers; its count is a third.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

BYTES_PER_ROW = 240
"""What a row takes at most while a run is sorted or merged, numpy's copies included."""
_LEAST_BLOCK = 1024


class Layout:
    """How words are put into two numbers: the first half of them into the first."""

    def __init__(self, order: int, bits: int):
        self.half, self.bits = -(-order // 2), np.uint64(bits)
        assert bits * self.half <= 64

    def pack(self, columns: list[np.ndarray]) -> np.ndarray:
        """Return uint64 (num, 2), in the order of the words, of one array for each place."""
        return (
            np.stack([self._number(columns[: self.half]), self._number(columns[self.half :])], 1)
            if len(columns) > self.half
            else np.stack([self._number(columns), np.zeros(columns[0].size, np.uint64)], 1)
        )

    def unpack(self, keys: np.ndarray, length: int) -> list[np.ndarray]:
        """Return the words of n-grams of a length, an int64 array for each place."""
        first = min(length, self.half)
        return self._words(keys[:, 0], first) + self._words(keys[:, 1], length - first)

    def _number(self, columns: list[np.ndarray]) -> np.ndarray:
        number = np.zeros(columns[0].size, np.uint64)
        for column in columns:
            number = (number << self.bits) | column.astype(np.uint64)
        return number

    def _words(self, numbers: np.ndarray, count: int) -> list[np.ndarray]:
        mask = np.uint64((1 << int(self.bits)) - 1)
        shifts = [self.bits * np.uint64(place) for place in range(count - 1, -1, -1)]
        return [((numbers >> shift) & mask).astype(np.int64) for shift in shifts]


class Runs:
    """Rows (key, key, count) in any order; they come out sorted, the counts of equal keys added."""

    def __init__(self, folder: Path, name: str, memory_bytes: int):
        self._folder, self._name = folder, name
        self._most = max(memory_bytes // BYTES_PER_ROW, _LEAST_BLOCK)
        self._held: list[np.ndarray] = []
        self._size = 0
        self._paths: list[Path] = []

    def add(self, keys: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Add keys, uint64 (num, 2), with their counts, or one each."""
        for start in range(0, len(keys), self._most):
            part = keys[start : start + self._most]
            own = (
                np.ones(len(part), np.uint64)
                if counts is None
                else counts[start : start + self._most]
            )
            self._held.append(np.column_stack([part, own.astype(np.uint64)]))
            self._size += len(part)
            if self._size >= self._most:
                self._write()

    def merged(self) -> Iterator[np.ndarray]:
        """Yield blocks of rows, uint64 (num, 3), that are sorted within and among themselves."""
        if self._held:
            self._write()
        runs = [np.memmap(path, np.uint64, "r").reshape(-1, 3) for path in self._paths]
        places = [0] * len(runs)
        block = max(self._most // max(len(runs), 1), _LEAST_BLOCK)
        while any(place < len(run) for place, run in zip(places, runs, strict=True)):
            parts = [run[place : place + block] for place, run in zip(places, runs, strict=True)]
            # What is up to the least of the last keys cannot stand in a later block.
            unfinished = [
                (int(part[-1, 0]), int(part[-1, 1]))
                for part, place, run in zip(parts, places, runs, strict=True)
                if place + len(part) < len(run)
            ]
            bound = min(unfinished, default=(2**64 - 1, 2**64 - 1))
            taken = [_up_to(part, bound) for part in parts]
            places = [place + count for place, count in zip(places, taken, strict=True)]
            rows = [part[:count] for part, count in zip(parts, taken, strict=True)]
            yield _summed(np.concatenate(rows))
        for path in self._paths:
            path.unlink()

    def _write(self) -> None:
        path = self._folder / f"{self._name}-{len(self._paths):05d}.run"
        _summed(np.concatenate(self._held)).tofile(path)
        self._paths.append(path)
        self._held, self._size = [], 0


def _up_to(rows: np.ndarray, bound: tuple[int, int]) -> int:
    """Return how many of the sorted rows have keys up to a bound."""
    high, low = (np.uint64(half) for half in bound)
    first, last = (int(np.searchsorted(rows[:, 0], high, side)) for side in ("left", "right"))  # type: ignore[call-overload]
    return first + int(np.searchsorted(rows[first:last, 1], low, "right"))


def _summed(rows: np.ndarray) -> np.ndarray:
    """Return rows sorted by key, one for each key, with the sum of its counts."""
    if not len(rows):
        return rows
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    is_first = np.ones(len(rows), bool)
    is_first[1:] = (rows[1:, :2] != rows[:-1, :2]).any(axis=1)
    first = np.flatnonzero(is_first)
    return np.column_stack([rows[first, :2], np.add.reduceat(rows[:, 2], first)])
