"""Find evaluation items in documents: by a long run of equal words, or by most of an item's short
runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipeline.dedup.evaluation.items import Item
from data_pipeline.dedup.words import Words, hash_words, rolling_hashes

NEAR_WORDS = 5  # words in the runs that a near copy shares
LEAST_RUNS = 4  # an item with fewer short runs of its own is found word for word or not at all
MOST_ITEMS = 100  # short runs in more items are the benchmark's phrases and say nothing of one item


class Matches(NamedTuple):
    """Runs of words that texts share with items.

    Attributes:
      texts: int64 (num,), the text's number.
      items: int64 (num,), the item's.
      begins: int64 (num,), the run's first word in `Words`.
      ends: int64 (num,), the word after its last.
    """

    texts: np.ndarray
    items: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Rules:
    """What counts as overlap: see `DecontaminateConfig`."""

    ngram_words: int
    min_words: int
    near_coverage: float | None


class OverlapIndex:
    """The runs of words of all items.

    Attributes:
      passed_over: bool (num_items,), items without a text of `min_words`.
    """

    def __init__(self, items: Sequence[Item], rules: Rules):
        self._rules = rules
        runs = _Runs(items, rules)
        self.passed_over = ~np.isin(np.arange(len(items)), runs.items_read)
        self._long = {size: _Table(*pairs) for size, pairs in runs.long.items()}
        hashes, owners = runs.short
        kinds, kind = np.unique(hashes, return_inverse=True)
        rare = np.bincount(kind, minlength=kinds.size)[kind] <= MOST_ITEMS
        self._short = _Table(hashes[rare], owners[rare])
        self._short_counts = np.bincount(owners[rare], minlength=len(items))

    def exact(self, words: Words) -> Matches:
        """Return the runs of `ngram_words` that items have too, and those that are all of a shorter
        text.
        """
        found = [
            self._matches(words, hashes, table, size)
            for size, hashes in rolling_hashes(words.hashes, self._rules.ngram_words)
            if (table := self._long.get(size)) is not None
        ]
        return _joined(found)

    def near(self, words: Words) -> Matches:
        """Return the short runs of texts that have `near_coverage` of an item's."""
        if self._rules.near_coverage is None:
            return _joined([])
        *_, (_, hashes) = rolling_hashes(words.hashes, NEAR_WORDS)
        found = self._matches(words, hashes, self._short, NEAR_WORDS)
        num_items = self._short_counts.size
        pair = found.texts * num_items + found.items
        # An item's run counts once, however often a text repeats it.
        _, distinct = _distinct(hashes[found.begins], pair)
        pairs, counts = np.unique(distinct, return_counts=True)
        of_item = self._short_counts[pairs % max(num_items, 1)]
        most = (counts >= self._rules.near_coverage * of_item) & (of_item >= LEAST_RUNS)
        enough = np.isin(pair, pairs[most])
        return Matches(*(column[enough] for column in found))

    @staticmethod
    def _matches(words: Words, hashes: np.ndarray, table: _Table, size: int) -> Matches:
        places, items = table.find(hashes)
        texts = np.searchsorted(words.offsets, places, side="right") - 1
        within = places + size <= words.offsets[texts + 1]
        texts, places, items = texts[within], places[within], items[within]
        return Matches(texts, items, places, places + size)


class _Table:
    """Hashes of runs, and the items that each stands in."""

    def __init__(self, hashes: np.ndarray, items: np.ndarray):
        order = np.lexsort((items, hashes))
        self._hashes, self._items = hashes[order], items[order]
        # One bit of a byte for each of 16 times as many values as there are hashes, at least 2^16:
        # nearly all runs of a document are turned away by one look into it.
        bits = max(16, int(hashes.size * 16).bit_length())
        self._shift = np.uint64(64 - bits)
        self._seen = np.zeros(1 << bits, bool)
        self._seen[(hashes >> self._shift).astype(np.int64)] = True

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (place, item) of every hash that stands in an item, once for each item."""
        places = np.flatnonzero(self._seen[(hashes >> self._shift).astype(np.int64)])
        firsts, ends = (
            np.searchsorted(self._hashes, hashes[places], side=side) for side in ("left", "right")
        )
        counts = ends - firsts
        within = np.arange(counts.sum()) - (counts.cumsum() - counts).repeat(counts)
        return places.repeat(counts), self._items[firsts.repeat(counts) + within]


class _Runs:
    """The runs of words that items are known by.

    Attributes:
      items_read: numbers of the items that have a text of `min_words`.
      long: by number of words: (hashes, items).
      short: (hashes, items), of NEAR_WORDS each, once an item.
    """

    def __init__(self, items: Sequence[Item], rules: Rules):
        texts = [text for item in items for text in item.texts]
        owner = np.arange(len(items)).repeat([len(item.texts) for item in items])
        words = hash_words(texts)
        lengths = np.diff(words.offsets)
        self.items_read = np.unique(owner[lengths >= rules.min_words])
        self.long: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.short = (np.empty(0, np.uint64), np.empty(0, np.int64))
        for size, hashes in rolling_hashes(words.hashes, rules.ngram_words):
            text = np.searchsorted(words.offsets, np.arange(hashes.size), side="right") - 1
            whole = np.arange(hashes.size) + size <= words.offsets[text + 1]
            used = whole & (lengths[text] >= rules.min_words)
            if size == NEAR_WORDS:
                self.short = _distinct(hashes[used], owner[text[used]])
            if size < rules.ngram_words:
                used &= lengths[text] == size
            if size >= rules.min_words and used.any():
                self.long[size] = _distinct(hashes[used], owner[text[used]])


def _distinct(hashes: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs (hash, item), each once."""
    order = np.lexsort((items, hashes))
    hashes, items = hashes[order], items[order]
    new = np.ones(hashes.size, bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (items[1:] != items[:-1])
    return hashes[new], items[new]


def _joined(matches: Sequence[Matches]) -> Matches:
    nothing = Matches(*[np.empty(0, np.int64)] * 4)
    return Matches(*(np.concatenate(column) for column in zip(nothing, *matches, strict=True)))
