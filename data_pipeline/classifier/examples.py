"""Labelled texts as features: who is learned from, who calibrates and who tests is a hash of the
text, so no copy of a text that is learned from tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.sparse import csr_array

from data_pipeline.checkpoints.reading import Reader
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
    good: Iterable[str], bad: Iterable[str], features: Features, *, most: int, held_out: float
) -> dict[str, Examples]:
    """Return the examples of each of `PARTS`; equal texts of a set count once.

    Args:
      features: what is known of a text.
      most: texts of each set; of more, those with the least hashes are taken.
      held_out: share of texts that is not learned from: a half calibrates, a half tests.
    """
    texts = [(text, True) for text in _read(good, features, most)]
    texts += [(text, False) for text in _read(bad, features, most)]
    bounds = np.array([1 - held_out, 1 - held_out / 2])
    part = np.searchsorted(bounds, [text.place for text, _ in texts], "right")
    return {
        name: _stacked(
            [pair for pair, own in zip(texts, part, strict=True) if own == number], features.size
        )
        for number, name in enumerate(PARTS)
    }


class Features(Protocol):
    """What is known of texts.

    Attributes:
      size: how many numbers there are of each.
    """

    size: int

    def __call__(
        self, texts: Iterable[tuple[bytes, str]], /
    ) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
        """Yield names of texts, in their order, with the places and values of the numbers that are
        not zero.
        """


class WordFeatures:
    """Hashed words and pairs of neighbours; see `Classifier`."""

    def __init__(self, header: Header):
        self._header, self.size = header, 1 << header.bits

    def __call__(
        self, texts: Iterable[tuple[bytes, str]]
    ) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
        """Yield names of texts with buckets and values."""
        for name, text in texts:
            found = grams(text, self._header.bits, self._header.max_chars)
            buckets, counts = np.unique(found, return_counts=True)
            yield name, buckets, (counts / np.sqrt(max(found.size, 1))).astype(np.float32)


class CheckpointFeatures:
    """The mean hidden state of a trained model."""

    def __init__(self, reader: Reader):
        self._reader, self.size = reader, reader.width
        self._all = np.arange(reader.width)

    def __call__(
        self, texts: Iterable[tuple[bytes, str]]
    ) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
        """Yield names of texts with all places and values."""
        for name, values in self._reader.features(texts):
            yield name, self._all, values


class _Least:
    """Keeps the texts of the least hashes, whatever their number and order."""

    def __init__(self, most: int):
        self._most, self._kept = most, dict[bytes, _Text]()
        self._limit = b"\xff" * 17  # above all hashes

    def unknown(self, texts: Iterable[str]) -> Iterator[tuple[bytes, str]]:
        """Yield texts that may be among them, with their hashes; of equal ones one, mostly."""
        for text in texts:
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if digest <= self._limit and digest not in self._kept:
                yield digest, text

    def add(self, digest: bytes, text: _Text) -> None:
        """Take a text."""
        self._kept[digest] = text
        if len(self._kept) >= 2 * self._most:
            self._kept = self._least()
            self._limit = max(self._kept)

    def texts(self) -> list[_Text]:
        """Return them in the order of their hashes."""
        return list(self._least().values())

    def _least(self) -> dict[bytes, _Text]:
        return {digest: self._kept[digest] for digest in sorted(self._kept)[: self._most]}


def _read(texts: Iterable[str], features: Features, most: int) -> list[_Text]:
    least = _Least(most)
    for digest, buckets, values in features(least.unknown(texts)):
        place = int.from_bytes(digest[8:15], "big") / 2**56
        least.add(digest, _Text(place, buckets, values))
    return least.texts()


def _stacked(texts: list[tuple[_Text, bool]], size: int) -> Examples:
    empty = [np.empty(0, np.float32)]
    values = np.concatenate([text.values for text, _ in texts] + empty)
    buckets = np.concatenate([text.buckets for text, _ in texts] + empty).astype(np.int64)
    ends = np.cumsum([0] + [text.buckets.size for text, _ in texts])
    shape = (len(texts), size)
    labels = np.array([label for _, label in texts], bool)
    return Examples(csr_array((values, buckets, ends), shape=shape), labels)
