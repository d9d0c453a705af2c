"""Which language a text is in: py3langid's model, its automaton run over all parts of a text at once.

The model is a naive Bayes classifier over byte n-grams (Lui and Baldwin, ACL 2012). The library
walks its automaton byte by byte in Python; here every 24 bytes are a walker of their own, and numpy
moves all of them at once. That is exact: the automaton finds n-grams of a few bytes, so its state
depends on as many last bytes, and each walker starts that much earlier.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from data_pipeline.libraries import load_library

_BYTES_OF_A_WALKER = 24


class Guess(NamedTuple):
    """A language (ISO 639) and its probability."""

    language: str
    probability: float


class LanguageModel:
    """Languages of texts.

    Attributes:
      languages: what it tells apart.
    """

    def __init__(self) -> None:
        library = load_library("py3langid.langid", extra="data", user="language")
        model = library.LanguageIdentifier.from_model_file(library.MODEL_FILE)
        self.languages = sorted(set(model.nb_classes))
        self._label_of_class = np.array([self.languages.index(name) for name in model.nb_classes])
        # Log probabilities, (features, classes).
        self._table = np.asarray(model.nb_ptc).astype(np.float32)
        self._prior = np.asarray(model.nb_pc, np.float64)
        self._next = np.asarray(model.tk_nextmove)
        self._row = np.asarray(model.tk_row, np.int64) << 8
        self._feature = np.asarray(model.tk_output, np.int32)  # -1 where a state is none
        self._memory = self._longest()

    def guess(self, text: str) -> Guess:
        """Return the likeliest language of a text."""
        return self.guess_all([text])[0]

    def guess_all(self, texts: Sequence[str]) -> list[Guess]:
        """Return the likeliest language of each text; the texts do not matter to one another."""
        encoded = [_encode(text) for text in texts]
        owners, features, counts = self._count_features(encoded)
        weights = np.log1p(counts, dtype=np.float32)
        bounds = np.searchsorted(owners, np.arange(len(texts) + 1))
        guesses = []
        for data, start, stop in zip(encoded, bounds[:-1], bounds[1:], strict=True):
            scores = weights[start:stop] @ self._table[features[start:stop]] + self._prior
            known = start < stop
            guesses.append(self._best(scores, len(data)) if known else Guess("und", 0.0))
        return guesses

    def _best(self, scores: np.ndarray, num_bytes: int) -> Guess:
        # Naive Bayes counts each n-gram as a witness of its own and is far too sure of long texts;
        # the root of their length is the temperature that the library's own normalisation has.
        scores = scores / math.sqrt(max(num_bytes, 1))
        likelihood = np.exp(scores - scores.max())
        by_label = np.bincount(self._label_of_class, likelihood, len(self.languages))
        best = int(by_label.argmax())
        return Guess(self.languages[best], float(by_label[best] / by_label.sum()))

    def _count_features(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which text has which feature how often, three arrays sorted by text."""
        first, warm, last = _walkers([len(text) for text in texts], self._memory)
        if not first.size:
            return (np.zeros(0, np.int64),) * 3
        steps = int((last - first).max())
        data = np.frombuffer(b"".join(texts) + bytes(steps), np.uint8)
        state = np.zeros(first.size, np.int64)
        found = np.empty((steps, first.size), np.int32)
        for step in range(steps):
            state = self._next[self._row[state] + data[first + step]]
            found[step] = self._feature[state]
        place = first + np.arange(steps)[:, None]
        counted = (found >= 0) & (place >= warm) & (place < last)
        ends = np.cumsum([len(text) for text in texts])
        owner = np.searchsorted(ends, first, "right")
        keys = owner[np.nonzero(counted)[1]] * self._table.shape[0] + found[counted]
        unique, counts = np.unique(keys, return_counts=True)
        return *np.divmod(unique, self._table.shape[0]), counts

    def _longest(self) -> int:
        """Return the bytes of the longest n-gram: how deep the automaton's tree is."""
        rows, which = self._next.reshape(-1, 256), self._row >> 8  # states share rows
        seen = np.zeros(self._row.size, bool)
        level, depth = np.zeros(1, np.int64), -1
        while level.size:
            seen[level] = True
            depth += 1
            reached = np.zeros(seen.size, bool)
            reached[rows[np.unique(which[level])]] = True
            level = np.flatnonzero(reached & ~seen)
        return depth


def _walkers(lengths: Sequence[int], memory: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each walker the byte it starts at, the first that counts, and the one it ends at."""
    sizes = np.array(lengths, np.int64)
    begins = np.cumsum(sizes) - sizes
    each = -(-sizes // _BYTES_OF_A_WALKER)
    begin = np.repeat(begins, each)
    number = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
    counts_from = begin + number * _BYTES_OF_A_WALKER
    last = np.minimum(counts_from + _BYTES_OF_A_WALKER, np.repeat(begins + sizes, each))
    return np.maximum(counts_from - memory, begin), counts_from, last


def _encode(text: str) -> bytes:
    """Return the bytes that the model was trained on: composed characters, no capitals alone."""
    text = text.lower() if text.isupper() else text
    return unicodedata.normalize("NFC", text).encode()


@cache
def language_model() -> LanguageModel:
    """Return the model; a process loads it once."""
    return LanguageModel()
