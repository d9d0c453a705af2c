"""Probabilities of labels by a supervised model of fastText: the mean of the vectors of a text's
words and n-grams, times a matrix (arXiv:1607.01759; n-grams of characters: arXiv:1607.04606).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_pipeline.fasttext.binary import Contents, read_fasttext
from maxlm.config.errors import UserError

END = b"</s>"  # of a line; a word like any other
LABEL = b"__label__"
_SPACES = re.compile(rb"[ \n\r\t\v\f\0]+")
_MASK = 2**32 - 1
_SIGMOID_STEPS, _SIGMOID_END = 512, 8  # its sigmoid is a table
_WORDS_KNOWN = 2**17


class FastText:
    """A model; texts count as one line each."""

    def __init__(self, contents: Contents):
        self._of = contents
        self.labels = [
            label.removeprefix(LABEL).decode("utf-8", "replace") for label in contents.labels
        ]
        self._rows_of = lru_cache(_WORDS_KNOWN)(self._word_rows)
        self._hash_of = lru_cache(_WORDS_KNOWN)(_signed_hash)
        self._tree = _paths(contents.label_counts) if contents.loss == "hs" else None

    def probabilities(self, text: str) -> np.ndarray:
        """Return the probability of each of `labels`, float32; zeros of a text of which no word is
        known.
        """
        rows = self._rows(text.encode("utf-8", "replace"))
        if not rows.size:
            return np.zeros(len(self.labels), np.float32)
        hidden = np.asarray(self._of.inputs[rows]).mean(axis=0, dtype=np.float32)
        scores = self._of.outputs @ hidden
        if self._tree is not None:
            return self._by_tree(scores)
        if self._of.loss == "softmax":
            shifted = np.exp(scores - scores.max())
            return shifted / shifted.sum()
        return _table_sigmoid(scores)

    def _rows(self, text: bytes) -> np.ndarray:
        # A line ends where its end is spelt, too.
        line = itertools.takewhile(lambda word: word != END, _SPACES.split(text))
        words = [word for word in line if word and not word.startswith(LABEL)] + [END]
        rows = [row for word in words for row in self._rows_of(word)]
        hashes = np.array([self._hash_of(word) for word in words], np.int64).astype(np.uint64)
        parts = [np.array(rows, np.int64)]
        running = hashes
        for length in range(2, self._of.word_ngrams + 1):
            running = running[: max(hashes.size - length + 1, 0)] * np.uint64(116049371)
            running = running + hashes[length - 1 :]
            if self._of.buckets:
                found = running % np.uint64(self._of.buckets)
                parts.append(found.astype(np.int64) + len(self._of.words))
        return np.concatenate(parts)

    def _word_rows(self, word: bytes) -> tuple[int, ...]:
        """Return the rows of a word and of its n-grams of characters."""
        own = self._of.words.get(word)
        rows = () if own is None else (own,)
        if not self._of.max_characters or word == END:
            return rows
        buckets, first = self._of.buckets, len(self._of.words)
        return rows + tuple(
            first + _hash(gram) % buckets
            for gram in _character_ngrams(
                b"<" + word + b">", self._of.min_characters, self._of.max_characters
            )
        )

    def _by_tree(self, scores: np.ndarray) -> np.ndarray:
        assert self._tree is not None
        right = 1 / (1 + np.exp(-scores.astype(np.float64)))
        found = [
            np.prod([right[node] if bit else 1 - right[node] for node, bit in path])
            for path in self._tree
        ]
        return np.array(found, np.float32)


def load_fasttext(path: Path | str) -> FastText:
    """Return the model of a file.

    Raises:
      UserError: it cannot be read, or is no such file.
    """
    return FastText(read_fasttext(path))


def label_number(model: FastText, label: str, path: str) -> int:
    """Return the number of a label, with or without its prefix.

    Raises:
      UserError: there is none.
    """
    name = label.removeprefix(LABEL.decode())
    if name not in model.labels:
        known = ", ".join(model.labels[:10])
        raise UserError(f"{path}: it has no label {label!r}; give one of {known}")
    return model.labels.index(name)


def _hash(data: bytes) -> int:
    """Return FNV-1a of 32 bits, of bytes with their sign, as the library has it."""
    value = 2166136261
    for byte in data:
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & _MASK
    return value


def _signed_hash(word: bytes) -> int:
    value = _hash(word)
    return value - 2**32 if value >= 2**31 else value


def _character_ngrams(word: bytes, least: int, most: int) -> Iterator[bytes]:
    """Yield n-grams of characters, but for the first and last sign alone."""
    starts = [place for place, byte in enumerate(word) if byte & 0xC0 != 0x80] + [len(word)]
    count = len(starts) - 1
    for first in range(count):
        for size in range(1, min(most, count - first) + 1):
            at_edge = size == 1 and (first == 0 or first + size == count)
            if size >= least and not at_edge:
                yield word[starts[first] : starts[first + size]]


def _table_sigmoid(scores: np.ndarray) -> np.ndarray:
    steps = np.arange(_SIGMOID_STEPS + 1) * (2 * _SIGMOID_END) / _SIGMOID_STEPS - _SIGMOID_END
    table = (1 / (1 + np.exp(-steps))).astype(np.float32)
    inside = np.clip(scores, -_SIGMOID_END, _SIGMOID_END)
    places = ((inside + _SIGMOID_END) * _SIGMOID_STEPS / _SIGMOID_END / 2).astype(np.int64)
    found = table[places]
    return np.where(
        scores < -_SIGMOID_END, 0.0, np.where(scores > _SIGMOID_END, 1.0, found)
    ).astype(np.float32)


def _paths(counts: Sequence[int]) -> list[list[tuple[int, bool]]]:
    """Return each label's way through the library's Huffman tree: (row of the inner node, right).

    Labels are in falling order of their counts; of the two least nodes the lesser is on the left.
    """
    leaves, unset = len(counts), 10**15
    weights = [*counts, *([unset] * (leaves - 1))]
    parents, is_right = [-1] * (2 * leaves - 1), [False] * (2 * leaves - 1)
    leaf, node = leaves - 1, leaves
    for new in range(leaves, 2 * leaves - 1):
        two: list[int] = []
        for _ in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                two, leaf = [*two, leaf], leaf - 1
            else:
                two, node = [*two, node], node + 1
        weights[new] = weights[two[0]] + weights[two[1]]
        parents[two[0]] = parents[two[1]] = new
        is_right[two[1]] = True
    paths = []
    for label in range(leaves):
        path, at = [], label
        while parents[at] >= 0:
            path.append((parents[at] - leaves, is_right[at]))
            at = parents[at]
        paths.append(path)
    return paths
