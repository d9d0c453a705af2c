"""Sentences and words of a text, and the numbers of words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

import numpy as np

UNKNOWN, START, END = "<unk>", "<s>", "</s>"
UNKNOWN_ID, START_ID, END_ID = range(3)
MOST_WORDS = 1024
"""Of a sentence; a longer line is several."""
MOST_COUNTED = 4_000_000
"""Different words that are counted at a time; beyond, words that were met once so far are forgotten."""
_SHORT_CHARS = 2**16

WordForm = Literal["normalised", "whitespace"]

_PATTERNS = {"normalised": re.compile(r"\w+|[^\w\s]"), "whitespace": re.compile(r"\S+")}
_DIGIT = re.compile(r"\d")


def sentences(text: str, form: WordForm) -> Iterator[list[str]]:
    """Yield the words of each line that is not blank.

    Args:
      form: normalised: letters in lower case, digits as 0, marks apart, as CCNet does before it
        scores (arXiv:1911.00359, 4.1); whitespace: what stands between spaces, as it is.
    """
    pattern = _PATTERNS[form]
    if form == "normalised":
        text = _DIGIT.sub("0", text.lower())
    for line in text.split("\n"):
        # findall is quicker, but would hold all words of a line at once.
        is_short = len(line) <= _SHORT_CHARS
        found = iter(pattern.findall(line)) if is_short else (m[0] for m in pattern.finditer(line))
        while words := list(islice(found, MOST_WORDS)):
            yield words


class Vocabulary:
    """Numbers of words; those that it does not know share one.

    Attributes:
      words: by number: the unknown one, begin and end of a sentence, then the others.
    """

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self._ids = {word: number for number, word in enumerate(self.words)}
        for mark in (START, END):  # a text that writes these says nothing about sentences
            self._ids.pop(mark, None)

    @classmethod
    def of(cls, texts: Iterable[str], form: WordForm, most: int) -> Vocabulary:
        """Return the words that texts use most, `most` with the three marks."""
        counts: Counter[str] = Counter()
        for text in texts:
            for words in sentences(text, form):
                counts.update(words)
            if len(counts) > MOST_COUNTED:
                counts = Counter({word: count for word, count in counts.items() if count > 1})
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        marks = (UNKNOWN, START, END)
        others = (word for word, _ in ordered if word not in marks)
        return cls([*marks, *islice(others, most - len(marks))])

    def encode(self, text: str, form: WordForm) -> Iterator[np.ndarray]:
        """Yield the numbers of each sentence, int64, with its begin and end."""
        number = self._ids.get
        for words in sentences(text, form):
            inside = [number(word, UNKNOWN_ID) for word in words]
            yield np.array([START_ID, *inside, END_ID], np.int64)

    @property
    def bits(self) -> int:
        """Bits of a word's number."""
        return max(1, (len(self.words) - 1).bit_length())


def joined(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return sentences one after the other, and the place of each word in its sentence, int64."""
    sizes = np.array([part.size for part in parts], np.int64)
    words = np.concatenate([*parts, np.empty(0, np.int64)])
    return words, np.arange(words.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
