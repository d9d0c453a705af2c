"""Decide within clusters by the exact Jaccard similarity: a row goes only if it is nearly equal to
a row that stays.

A cluster is what bands link, directly or over others, so its ends may have nothing in common: rows
are taken best first, each is compared with the rows that stay and share a band with it, and it
stays too unless one of them is similar enough.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

MOST_COMPARED = 64
"""Most rows that stay which one band key leads to, and most that a row is compared with, the
likeliest first: time grows with the rows, whatever the text. What is left out is counted."""

_CACHED_GRAMS = 2**23  # of rows that stay, 64 MiB


@dataclass(frozen=True)
class Candidates:
    """Rows that share a band with another, in any order; whole clusters.

    Attributes:
      rows: uint64 (num,), their names.
      cluster: uint64 (num,), the name of the least row of the cluster.
      fixed: bool (num,), whether it stays whatever it equals.
      score: float64 (num,), the higher stays; among equals the lower row.
      bands: uint64 (num, bands), the band keys.
    """

    rows: np.ndarray
    cluster: np.ndarray
    fixed: np.ndarray
    score: np.ndarray
    bands: np.ndarray


class Removed(NamedTuple):
    """A candidate that goes: its index, that of the row that stays, and their similarity."""

    candidate: int
    kept: int
    similarity: float


@dataclass
class Cluster:
    """What became of a cluster.

    Attributes:
      members: indices of the candidates, best first.
      removed: those that go.
      uncompared: rows that stay although not all that share a band with them could be compared.
    """

    members: np.ndarray
    removed: list[Removed] = field(default_factory=list)
    uncompared: int = 0


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Return the Jaccard similarity of two sets, each ascending without repeats."""
    if left.size > right.size:
        left, right = right, left
    if left.size == 0:
        return 0.0
    place = np.searchsorted(right, left).clip(max=right.size - 1)
    common = int(np.count_nonzero(right[place] == left))
    return common / (left.size + right.size - common)


def verify(
    candidates: Candidates, grams_of: Callable[[int], np.ndarray], *, least_similarity: float
) -> Iterator[Cluster]:
    """Yield the clusters, decided.

    Args:
      grams_of: returns a candidate's n-grams by its index: their hashes, ascending, no repeats.
      least_similarity: from which on a row counts as a copy.
    """
    order = np.lexsort((candidates.rows, -candidates.score, ~candidates.fixed, candidates.cluster))
    clusters = candidates.cluster[order]
    borders = np.flatnonzero(clusters[1:] != clusters[:-1]) + 1
    for members in np.split(order, borders) if order.size else ():
        yield _Staying(candidates, grams_of, least_similarity).decide(members)


class _Staying:
    """The rows of one cluster that stay, found by their band keys."""

    def __init__(
        self,
        candidates: Candidates,
        grams_of: Callable[[int], np.ndarray],
        least_similarity: float,
    ):
        self._candidates = candidates
        self._grams_of = grams_of
        self._least = least_similarity
        self._by_band: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self._cache: dict[int, np.ndarray] = {}
        self._cached = 0

    def decide(self, members: np.ndarray) -> Cluster:
        """Decide one row after the other, the best first."""
        cluster = Cluster(members)
        for candidate in members.tolist():
            keys = list(enumerate(self._candidates.bands[candidate].tolist()))
            if not self._candidates.fixed[candidate]:
                removed, left_out = self._compare(candidate, keys)
                if removed is not None:
                    cluster.removed.append(removed)
                    continue
                cluster.uncompared += left_out
            for key in keys:
                if len(self._by_band[key]) < MOST_COMPARED:
                    self._by_band[key].append(candidate)
        return cluster

    def _compare(self, candidate: int, keys: list[tuple[int, int]]) -> tuple[Removed | None, bool]:
        """Return the removal, if a row that stays is similar enough, and whether some were not
        looked at.
        """
        found = [self._by_band.get(key, ()) for key in keys]
        shared = Counter(kept for group in found for kept in group)
        if not shared:
            return None, False
        grams = self._grams_of(candidate)
        for kept, _ in shared.most_common(MOST_COMPARED):
            other = self._kept_grams(kept)
            if min(grams.size, other.size) < self._least * max(grams.size, other.size):
                continue  # the similarity is below the least whatever they share
            similarity = jaccard(grams, other)
            if similarity >= self._least:
                return Removed(candidate, kept, similarity), False
        full = any(len(group) >= MOST_COMPARED for group in found)
        return None, full or len(shared) > MOST_COMPARED

    def _kept_grams(self, kept: int) -> np.ndarray:
        """Return a kept row's n-grams, from memory if they were asked for lately."""
        if kept not in self._cache:
            grams = self._grams_of(kept)
            if self._cached + grams.size > _CACHED_GRAMS:
                self._cache, self._cached = {}, 0
            self._cache[kept] = grams
            self._cached += grams.size
        return self._cache[kept]
