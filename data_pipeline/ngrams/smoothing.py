"""Interpolated modified Kneser-Ney smoothing: from counts to probabilities (Chen and Goodman 1998,
4.1.6; Heafield et al. 2013).

With c the counts of `data_pipeline.ngrams.counting`, and u v w an n-gram of words u v before w,

    p(w | u v) = (c(u v w) - D(c(u v w))) / sum_x c(u v x) + g(u v) p(w | v)
    g(u v) = sum_x D(c(u v x)) / sum_x c(u v x)

where D is a discount for counts of 1, 2 and more, and words without their context are mixed with
the uniform distribution over all words and the end of a sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.ngrams.counting import Counts
from data_pipeline.ngrams.model import Level, find_all
from data_pipeline.ngrams.words import START_ID

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where a text is too small or too regular to estimate them, as KenLM's."""
_ROWS_AT_ONCE = 2**18
_NEVER = -99.0  # ARPA's logarithm of a probability that is not asked for: a sentence's begin


class Smoothing:
    """Turns counts into the levels of a model, whose arrays are files.

    Attributes:
      levels: those that are done, from length 1.
      discounts: of each level.
      estimated: for each level, whether the text was enough to estimate its discounts.
    """

    def __init__(self, counts: Counts, num_words: int, folder: Path):
        self.levels: list[Level] = []
        self.discounts: list[np.ndarray] = []
        self.estimated: list[bool] = []
        self._counts, self._folder, self._num_words = counts, folder, num_words
        self._lower = np.empty(0)  # probabilities of the level that was done last
        for length in range(1, counts.order + 1):
            discounts, estimated = _discounts(counts.table(length))
            self.discounts.append(discounts)
            self.estimated.append(estimated)
            self._words() if length == 1 else self._level(length)

    def _words(self) -> None:
        """Make the level of single words."""
        table = self._counts.table(1)
        counts = np.zeros(self._num_words)
        counts[table[:, 0].astype(np.int64)] = table[:, 2]
        taken = _taken(counts, self.discounts[0])
        uniform = 1 / (self._num_words - 1)
        probabilities = (counts - taken + taken.sum() * uniform) / counts.sum()
        logs = np.log10(probabilities)
        logs[START_ID] = _NEVER
        self._lower = probabilities
        self.levels.append(self._stored(1, logs.size, keys=0))
        self.levels[0].logs[:] = logs

    def _level(self, length: int) -> None:
        """Make the level of a length, and the weights of the one before."""
        table = self._counts.table(length)
        level = self._stored(length, len(table), keys=len(table))
        before = self.levels[-1]
        sums, discounted = (self._file(name, before.logs.size, np.float64) for name in ("s", "d"))
        for rows, words in self._blocks(table, length):
            context = find_all(self.levels, words[:-1], self._bits)
            level.keys[rows] = (context.astype(np.uint64) << np.uint64(self._bits)) | words[
                -1
            ].astype(np.uint64)
            counts = table[rows, 2].astype(np.float64)
            first = int(context[0])
            for total, values in ((sums, counts), (discounted, _taken(counts, self.discounts[-1]))):
                added = np.bincount(context - first, values)
                total[first : first + added.size] += added
        for start in range(0, before.logs.size, _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            begun = sums[part] > 0
            ratio = np.divide(discounted[part], sums[part], out=np.ones(begun.size), where=begun)
            before.backoffs[part] = np.log10(ratio)
        self._interpolate(length, table, level, sums, discounted)

    def _interpolate(
        self, length: int, table: Any, level: Level, sums: Any, discounted: Any
    ) -> None:
        probabilities = self._file(f"p{length % 2}", len(table), np.float64)
        for rows, words in self._blocks(table, length):
            context = (level.keys[rows] >> np.uint64(self._bits)).astype(np.int64)
            shorter = find_all(self.levels, words[1:], self._bits)
            counts = table[rows, 2].astype(np.float64)
            kept = counts - _taken(counts, self.discounts[-1])
            mixed = kept + discounted[context] * self._lower[shorter]
            probabilities[rows] = mixed / sums[context]
            level.logs[rows] = np.log10(probabilities[rows])
        self._lower = probabilities
        self.levels.append(level)

    def _blocks(self, table: np.ndarray, length: int) -> Iterator[tuple[slice, list[np.ndarray]]]:
        for start in range(0, len(table), _ROWS_AT_ONCE):
            rows = slice(start, min(start + _ROWS_AT_ONCE, len(table)))
            yield rows, self._counts.layout.unpack(table[rows, :2], length)

    @property
    def _bits(self) -> int:
        return int(self._counts.layout.bits)

    def _stored(self, length: int, size: int, *, keys: int) -> Level:
        backoffs = size if length < self._counts.order else 0
        return Level(
            self._file(f"{length}.keys", keys, np.uint64),
            self._file(f"{length}.logs", size, np.float32),
            self._file(f"{length}.backoffs", backoffs, np.float32),
        )

    def _file(self, name: str, size: int, dtype: Any) -> np.ndarray:
        """Return an array of zeros in a file, which the system may take out of memory."""
        if not size:
            return np.empty(0, dtype)
        path = self._folder / f"{name}.array"
        path.unlink(missing_ok=True)
        return np.memmap(path, dtype, "w+", shape=(size,))


def _discounts(table: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the discounts of counts of 1, 2, and more (Chen and Goodman 1998, eq. 26), and whether
    they could be estimated.
    """
    n = np.zeros(5)
    for start in range(0, len(table), _ROWS_AT_ONCE):
        counts = np.minimum(table[start : start + _ROWS_AT_ONCE, 2], 5).astype(np.int64)
        n += np.bincount(counts, minlength=6)[:5]
    if (n[1:] > 0).all():
        share = n[1] / (n[1] + 2 * n[2])
        places = np.arange(1, 4)
        found = places - (places + 1) * share * n[2:5] / n[1:4]
        if ((found > 0) & (found < places)).all():
            return found, True
    return np.array(FALLBACK), False


def _taken(counts: np.ndarray, discounts: np.ndarray) -> np.ndarray:
    """Return the discount of each count."""
    return np.concatenate([[0.0], discounts])[np.minimum(counts, 3).astype(np.int64)]
