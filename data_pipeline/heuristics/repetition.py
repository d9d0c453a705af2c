"""How much of a text is in repeated n-grams of words.

An n-gram can only be repeated where the one that is a word shorter is, so each length looks at the
few places that the one before has left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_pipeline.heuristics.text import Words


@dataclass(frozen=True)
class RepeatedNgrams:
    """All occurrences of the n-grams of one length that occur more than once, in their order.

    Attributes:
      length: n.
      places: the first word of each occurrence, int64.
      groups: which n-gram it is, int64; equal for equal n-grams.
    """

    length: int
    places: np.ndarray
    groups: np.ndarray

    def top_chars(self, words: Words) -> int:
        """Return the characters, with a space between words, of all occurrences of the most frequent
        n-gram; of several, the one that comes first.
        """
        if not self.places.size:  # every n-gram is there once
            return _chars(words, 0, self.length) + self.length - 1
        counts = np.bincount(self.groups)
        first = int(np.argmax(counts[self.groups] == counts.max()))
        chars = _chars(words, int(self.places[first]), self.length) + self.length - 1
        return chars * int(counts.max())

    def duplicate_chars(self, words: Words) -> int:
        """Return the characters of words in n-grams that repeat an earlier one; none counts twice.

        Read from the left: an n-gram that repeats is counted and skipped as a whole.
        """
        if not self.places.size:
            return 0
        total, free = 0, 0
        seen: set[int] = set()
        ends = words.ends
        sizes = (ends[self.places + self.length] - ends[self.places]).tolist()
        for place, group, size in zip(
            self.places.tolist(), self.groups.tolist(), sizes, strict=True
        ):
            if place < free:
                continue
            if group in seen:
                total += size
                free = place + self.length
            else:
                seen.add(group)
        return total


def repeated_ngrams(words: Words, most: int) -> Iterator[RepeatedNgrams]:
    """Yield the repeated n-grams of two words, three words, to `most` words; none for lengths that
    the text does not have.
    """
    places = np.arange(words.count)
    groups = words.ids
    for length in range(2, min(most, words.count) + 1):
        if places.size:
            # The last place has no further word.
            stop = places.size - int(places[-1] + length > words.count)
            places, groups = places[:stop], groups[:stop]
            # Groups are numbers below the number of words: the key is exact.
            keys = groups * len(words.unique) + words.ids[places + length - 1]
            again, groups = _grouped(keys)
            places, groups = places[again], groups[again]
        yield RepeatedNgrams(length, places, groups)


def _grouped(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which keys are there more than once, and a number of each, equal for equal keys.

    As np.unique would say it, whose calls cost most of the time on texts of a few hundred words.
    """
    order = keys.argsort()
    ranked = keys[order]
    as_before = np.zeros(keys.size + 1, bool)  # whether a key is as the one before it, in order
    np.equal(ranked[1:], ranked[:-1], out=as_before[1:-1])
    again, groups = np.empty(keys.size, bool), np.empty(keys.size, np.int64)
    again[order] = as_before[1:] | as_before[:-1]
    groups[order] = (~as_before[:-1]).cumsum() - 1
    return again, groups


def _chars(words: Words, start: int, length: int) -> int:
    return int(words.lengths[start : start + length].sum())
