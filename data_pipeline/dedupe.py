"""Drop documents that say what an earlier one says: exact copies, and near copies found by MinHash.

MinHash with banding proposes pairs (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch.
3) and the exact Jaccard similarity of their word 5-grams decides, so no document is dropped by an
unlucky hash. A document's keys, a SHA-256 and a signature of 64 numbers, are a pure function of its
text. Numpy does this at about 10 MB/s.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipeline.reading import Document

SHINGLE_WORDS = 5
SIMILARITY = 0.8  # Jaccard similarity from which a document counts as a copy
# A pair at similarity s is proposed with probability 1 - (1 - s^4)^16: 0.9998 at 0.8. Recipes that
# let the bands decide take longer ones, such as FineWeb's 14 of 8 (arXiv:2406.17557): those miss 8
# % at 0.8 and drop 5 % of pairs at 0.5.
BANDS, ROWS = 16, 4
# Most pairs compared per document, the likeliest first: linear time, whatever the text.
MAX_CANDIDATES = 32

_CONSTANTS = np.frombuffer(
    hashlib.shake_256(b"maxlm minhash").digest(16 * BANDS * ROWS), np.uint64
).reshape(2, -1, 1)
_MULTIPLIERS, _OFFSETS = _CONSTANTS[0] | np.uint64(1), _CONSTANTS[1]
_WORD_PRIME = np.uint64(0x9E3779B97F4A7C15)

Rule = Literal["drop", "drop_exact", "keep"]  # what becomes of a source's copies: `raw.duplicates`


@dataclass(frozen=True)
class Deduplicated:
    """The documents of a source that are left, in their order, and how many copies went."""

    documents: list[Document]
    exact_duplicates: int
    near_duplicates: int


def deduplicate(
    sources: Mapping[str, Sequence[Document]],
    rules: Mapping[str, Rule],
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Deduplicated]:
    """Keep the first of each group of equal or nearly equal documents, over all sources in their
    order.

    Args:
      sources: the documents of each source.
      rules: which copies each source loses; those it keeps are still what later sources are
        compared with.
      progress: is told characters done.
    """
    seen: set[bytes] = set()
    index = _NearIndex() if "drop" in rules.values() else None
    return {
        name: _deduplicate_one(documents, rules[name], seen, index, progress)
        for name, documents in sources.items()
    }


def _deduplicate_one(
    documents: Sequence[Document],
    rule: Rule,
    seen: set[bytes],
    index: _NearIndex | None,
    progress: Callable[[int], None],
) -> Deduplicated:
    kept: list[Document] = []
    exact = near = 0
    for document in documents:
        progress(len(document.text))
        words = document.text.encode().split()
        digest = hashlib.sha256(b" ".join(words)).digest()
        if digest in seen:
            if rule == "keep":
                kept.append(document)
            else:
                exact += 1
            continue
        seen.add(digest)
        if index is None or index.add(_shingles(words), despite_copies=rule != "drop"):
            kept.append(document)
        else:
            near += 1
    return Deduplicated(kept, exact, near)


class _NearIndex:
    """Sets of shingles, found again by the bands of their MinHash signature."""

    def __init__(self) -> None:
        self._sets: list[np.ndarray] = []
        self._buckets: list[defaultdict[bytes, list[int]]] = [
            defaultdict(list) for _ in range(BANDS)
        ]

    def add(self, shingles: np.ndarray, *, despite_copies: bool = False) -> bool:
        """Add a set unless one like it is there and that matters; return whether it was added."""
        keys = [band.tobytes() for band in _signature(shingles).reshape(BANDS, ROWS)]
        if not despite_copies and self._has_copy(shingles, keys):
            return False
        for bucket, key in zip(self._buckets, keys, strict=True):
            bucket[key].append(len(self._sets))
        self._sets.append(shingles)
        return True

    def _has_copy(self, shingles: np.ndarray, keys: Sequence[bytes]) -> bool:
        shared = Counter(
            other
            for bucket, key in zip(self._buckets, keys, strict=True)
            for other in bucket.get(key, ())
        )
        likeliest = (self._sets[other] for other, _ in shared.most_common(MAX_CANDIDATES))
        return any(_similarity(other, shingles) >= SIMILARITY for other in likeliest)


def _shingles(words: Sequence[bytes]) -> np.ndarray:
    """Return the sorted distinct hashes (uint32) of all runs of five words; of all words, if they
    are fewer.
    """
    hashes = np.fromiter((zlib.crc32(word) for word in words), np.uint64, len(words))
    size = min(SHINGLE_WORDS, len(words))
    runs = np.zeros(len(words) - size + 1, np.uint64)
    for place in range(size):
        runs = runs * _WORD_PRIME + hashes[place : place + runs.size]
    runs ^= runs >> np.uint64(29)
    return np.unique((runs * _WORD_PRIME >> np.uint64(32)).astype(np.uint32))


def _signature(shingles: np.ndarray) -> np.ndarray:
    """Return the MinHash signature, uint32 (BANDS * ROWS,): the least of each of 64 hashes of the
    set's members.
    """
    least = np.full(BANDS * ROWS, 2**32 - 1, np.uint32)
    for start in range(0, shingles.size, 8192):
        block = shingles[start : start + 8192].astype(np.uint64)
        hashed = (_MULTIPLIERS * block + _OFFSETS) >> np.uint64(32)
        least = np.minimum(least, hashed.min(axis=1).astype(np.uint32))
    return least


def _similarity(one: np.ndarray, two: np.ndarray) -> float:
    """Return the Jaccard similarity of two sorted sets."""
    if min(one.size, two.size) < SIMILARITY * max(one.size, two.size):
        return 0.0  # the exact value is below the threshold whatever they share
    common = np.intersect1d(one, two, assume_unique=True).size
    return common / (one.size + two.size - common)
