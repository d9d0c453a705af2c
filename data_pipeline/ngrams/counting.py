"""Counts that Kneser-Ney smoothing asks for: of the longest n-grams how often they stand, of shorter
ones how many different words stand before them (Chen and Goodman 1998, 4.1.6).

An n-gram at the begin of a sentence has no word before it, and counts how often it stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_pipeline.ngrams.runs import Layout, Runs
from data_pipeline.ngrams.words import joined

_WORDS_AT_ONCE = 2**18


class Counts:
    """Tables of n-grams on disk, one for each length.

    Attributes:
      layout: how the words of an n-gram are kept.
      order: the length of the longest.
    """

    def __init__(self, folder: Path, layout: Layout, order: int):
        self.layout, self.order, self._folder = layout, order, folder

    def table(self, length: int) -> np.ndarray:
        """Return the n-grams of a length in the order of their words, uint64 (num, 3): two of key,
        one of count.
        """
        path = self._folder / f"{length}.counts"
        if not path.stat().st_size:
            return np.empty((0, 3), np.uint64)
        return np.memmap(path, np.uint64, "r").reshape(-1, 3)


def count(
    sentences: Iterable[np.ndarray], folder: Path, *, order: int, bits: int, memory_bytes: int
) -> Counts:
    """Count the n-grams of sentences.

    Args:
      sentences: numbers of words, with those of begin and end.
      folder: for files of its own.
      order: length of the longest n-grams, 2 or more.
      bits: of a word's number.
    """
    counts = Counts(folder, Layout(order, bits), order)
    # Two are filled at a time: that of a length while the longer one is merged.
    runs = {length: Runs(folder, str(length), memory_bytes // 3) for length in range(1, order + 1)}
    held, size = list[np.ndarray](), 0
    for sentence in sentences:
        held.append(sentence)
        size += sentence.size
        if size >= _WORDS_AT_ONCE:
            _add(held, runs, counts)
            held, size = [], 0
    _add(held, runs, counts)
    for length in range(order, 0, -1):
        with (folder / f"{length}.counts").open("wb") as file:
            for rows in runs[length].merged():
                rows.tofile(file)
                if length > 1:
                    words = counts.layout.unpack(rows[:, :2], length)
                    runs[length - 1].add(counts.layout.pack(words[1:]))
    return counts


def _add(sentences: list[np.ndarray], runs: dict[int, Runs], counts: Counts) -> None:
    words, places = joined(sentences)
    for length in range(2, counts.order + 1):
        longest = length == counts.order
        last = np.flatnonzero(places >= length - 1 if longest else places == length - 1)
        columns = [words[last - back] for back in range(length - 1, -1, -1)]
        runs[length].add(counts.layout.pack(columns))
