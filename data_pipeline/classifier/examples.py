"""Labelled texts as features: who is learned from, who calibrates and who tests is a hash of the
text, so no copy of a text that is learned from tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from data_pipeline.classifier.features import grams
from data_pipeline.classifier.model import Header

PARTS = ("train", "calibrate", "test")


@dataclass(frozen=True)
class Examples:
    """Features, float32 (num_texts, num_features), and which texts are good, bool (num_texts,)."""

    features: csr_array
    labels: np.ndarray


@dataclass(frozen=True)
class _Text:
    place: float  # in [0, 1), uniform
    buckets: np.ndarray
    values: np.ndarray


def read_examples(
    good: Iterable[str], bad: Iterable[str], header: Header, *, most: int, held_out: float
) -> dict[str, Examples]:
    """Return the examples of each of `PARTS`; equal texts of a set count once.

    Args:
      most: texts of each set; of more, those with the least hashes are taken.
      held_out: share of texts that is not learned from: a half calibrates, a half tests.
    """
    texts = [(text, True) for text in _features(good, header, most)]
    texts += [(text, False) for text in _features(bad, header, most)]
    bounds = np.array([1 - held_out, 1 - held_out / 2])
    part = np.searchsorted(bounds, [text.place for text, _ in texts], "right")
    return {
        name: _stacked(
            [pair for pair, own in zip(texts, part, strict=True) if own == number], header
        )
        for number, name in enumerate(PARTS)
    }


def _features(texts: Iterable[str], header: Header, most: int) -> list[_Text]:
    kept: dict[bytes, _Text] = {}
    for text in texts:
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest in kept:
            continue
        found = grams(text, header.bits, header.max_chars)
        buckets, counts = np.unique(found, return_counts=True)
        values = (counts / np.sqrt(max(found.size, 1))).astype(np.float32)
        place = int.from_bytes(digest[8:15], "big") / 2**56
        kept[digest] = _Text(place, buckets, values)
        if len(kept) >= 2 * most:
            kept = _least(kept, most)
    return list(_least(kept, most).values())


def _least(texts: dict[bytes, _Text], most: int) -> dict[bytes, _Text]:
    return {digest: texts[digest] for digest in sorted(texts)[:most]}


def _stacked(texts: list[tuple[_Text, bool]], header: Header) -> Examples:
    empty = [np.empty(0, np.float32)]
    values = np.concatenate([text.values for text, _ in texts] + empty)
    buckets = np.concatenate([text.buckets for text, _ in texts] + empty).astype(np.int64)
    ends = np.cumsum([0] + [text.buckets.size for text, _ in texts])
    shape = (len(texts), 1 << header.bits)
    labels = np.array([label for _, label in texts], bool)
    return Examples(csr_array((values, buckets, ends), shape=shape), labels)
