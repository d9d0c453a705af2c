"""An n-gram model in arrays, and how probably a text's words follow each other by it.

An n-gram is a row of its length's arrays, found by one number: the row of its words but the last,
and the last word. So a text's n-grams of all lengths are found in numpy, length after length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, FiniteFloat

from data_pipeline.ngrams.words import Vocabulary, WordForm, joined
from maxlm.config.section import Section

_WORDS_AT_ONCE = 2**16


class Header(Section):
    """What a model's file says beside its arrays.

    Attributes:
      order: length of the longest n-grams.
      form: how a text is cut into words.
      percentiles: perplexities below which 0, 1, ... 100 percent of the held-out documents are;
        none if they are not known.
      discounts: of each length, for n-grams that count one, two, and more.
    """

    format: Literal["maxlm-ngrams-1"] = "maxlm-ngrams-1"
    order: Annotated[int, Field(ge=1, le=16)]
    form: WordForm
    percentiles: list[FiniteFloat] = []
    discounts: list[list[FiniteFloat]] = []


class Level(NamedTuple):
    """N-grams of one length, in the order of their words.

    Attributes:
      keys: uint64 (num,), ascending: row of the words but the last, and the last word, of the
        vocabulary's bits. Of length 1 there are none: a word's number is its row.
      logs: float32 (num,), logarithm to base 10 of the last word's probability after the others.
      backoffs: float32 (num,), that of the weight of shorter n-grams after these words; none for
        the longest.
    """

    keys: np.ndarray
    logs: np.ndarray
    backoffs: np.ndarray


class NgramModel:
    """Scores texts.

    Attributes:
      levels: n-grams by their length, from 1.
    """

    def __init__(self, header: Header, vocabulary: Vocabulary, levels: Sequence[Level]):
        self.header, self.vocabulary, self.levels = header, vocabulary, list(levels)

    def perplexity(self, text: str) -> float:
        """Return the perplexity of a text per word, ends of sentences counted as words; nan if
        there is none.
        """
        total, number = 0.0, 0
        held, size = list[np.ndarray](), 0
        for sentence in self.vocabulary.encode(text, self.header.form):
            held.append(sentence)
            size += sentence.size
            if size >= _WORDS_AT_ONCE:
                total, number = total + float(self.logs(held).sum()), number + size - len(held)
                held, size = [], 0
        if held:
            total, number = total + float(self.logs(held).sum()), number + size - len(held)
        return float(10 ** min(-total / number, 300.0)) if number else float("nan")

    def logs(self, sentences: Sequence[np.ndarray]) -> np.ndarray:
        """Return the logarithm to base 10 of the probability of each word but the begins of
        sentences, float64.
        """
        words, places = joined(sentences)
        rows, logs = words, self.levels[0].logs[words].astype(np.float64)
        for length, level in enumerate(self.levels[1:], 2):
            context = np.concatenate([[-1], rows[:-1]])
            context[places < length - 1] = -1  # it would begin in the sentence before
            rows = find(level.keys, context, words, self.vocabulary.bits)
            weights = np.zeros(words.size)
            known = context >= 0
            weights[known] = self.levels[length - 2].backoffs[context[known]]
            found = rows >= 0
            logs = np.where(found, 0.0, logs + weights)
            logs[found] = level.logs[rows[found]]
        return logs[places > 0]


def find(keys: np.ndarray, contexts: np.ndarray, words: np.ndarray, bits: int) -> np.ndarray:
    """Return the rows of n-grams, int64, or -1: those of their words but the last, and the last."""
    rows = np.full(words.size, -1)
    known = np.flatnonzero(contexts >= 0)
    if keys.size:
        wanted = (contexts[known].astype(np.uint64) << np.uint64(bits)) | words[known].astype(
            np.uint64
        )
        places = np.searchsorted(keys, wanted)
        is_there = keys[np.minimum(places, keys.size - 1)] == wanted
        rows[known[is_there]] = places[is_there]
    return rows


def find_all(levels: Sequence[Level], columns: Sequence[np.ndarray], bits: int) -> np.ndarray:
    """Return the rows of n-grams of one length, int64, or -1; an array of words for each place."""
    rows = columns[0]
    for level, words in zip(levels[1:], columns[1:], strict=False):
        rows = find(level.keys, rows, words, bits)
    return rows
