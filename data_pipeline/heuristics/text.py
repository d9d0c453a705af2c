"""A text and what rules ask of it: its lines, paragraphs and words, each found once and only if some
rule asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from data_pipeline.documents import Value

WordKind = Literal["tokens", "whitespace"]

# Scripts without spaces between words: each character counts as one.
_SPACELESS = (
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
SPACELESS_SIGN = re.compile(f"[{_SPACELESS}]")
# Marks around a word are tokens of their own, as are hyphens and slashes in it; other marks within
# a word are part of it: `don't`, `3.14`, `example.com`. Runs of dots and of hyphens are one token.
_TOKENS = re.compile(r"\w(?:[^\s/-]*\w)?|\.\.+|--+|[^\w\s]")
_TOKENS_AND_SIGNS = re.compile(
    rf"[{_SPACELESS}]|[^\W{_SPACELESS}](?:[^\s/{_SPACELESS}-]*[^\W{_SPACELESS}])?|\.\.+|--+|[^\w\s]"
)
_HAS_LETTER = re.compile(r"[^\W\d_]")
_HAS_WORD_SIGN = re.compile(r"\w")
_PARAGRAPH_END = re.compile(r"\n{2,}")
_LINE_END = re.compile(r"\n+")


class Repeated(NamedTuple):
    """Parts of a text that stand in it more than once: how many there are after the first of each, and their
    characters.
    """

    parts: int
    chars: int


class Text:
    """A document's text, its metadata, and its statistics."""

    def __init__(self, content: str, meta: Mapping[str, Value], words: WordKind):
        self.content = content
        self.meta = meta
        self.word_kind = words

    def replaced(self, content: str) -> Text:
        """Return the text with other content."""
        return Text(content, self.meta, self.word_kind)

    @cached_property
    def words(self) -> Words:
        """The words, in order."""
        if self.word_kind == "whitespace":
            return Words(self.content.split())
        if self.content.isascii() or not SPACELESS_SIGN.search(self.content):
            return Words(_TOKENS.findall(self.content))
        return Words(_TOKENS_AND_SIGNS.findall(self.content))

    @cached_property
    def lines(self) -> list[str]:
        """All lines; a line end at the end of the text begins no other."""
        return self.content.removesuffix("\n").split("\n")

    @cached_property
    def full_lines(self) -> list[str]:
        """Lines that are not blank."""
        return [line for line in self.lines if line and not line.isspace()]

    @cached_property
    def repeated_lines(self) -> Repeated:
        """Lines that repeat an earlier one; runs of line ends count as one."""
        return repeated(_LINE_END.split(self.content))

    @cached_property
    def num_runs_of_lines(self) -> int:
        """Lines, where runs of line ends count as one."""
        return len(_LINE_END.findall(self.content)) + 1

    @cached_property
    def paragraphs(self) -> list[str]:
        """Paragraphs: what stands between blank lines."""
        return _PARAGRAPH_END.split(self.content.strip())


def repeated(parts: Sequence[str]) -> Repeated:
    """Count the parts that are equal to an earlier one."""
    unique = set(parts)
    chars = sum(map(len, parts)) - sum(map(len, unique))
    return Repeated(parts=len(parts) - len(unique), chars=chars)


class Words:
    """The words of a text, in order, and numbers of them.

    Attributes:
      count: how many there are.
      unique: each different one with its number, in the order of their first places.
      ids: the number of each word, int64 (count,).
      lengths: characters of each word, int64 (count,).
    """

    def __init__(self, words: list[str]):
        self.count = len(words)
        self.unique = {word: number for number, word in enumerate(dict.fromkeys(words))}
        self.ids = np.fromiter(map(self.unique.__getitem__, words), np.int64, len(words))
        lengths = np.fromiter(map(len, self.unique), np.int64, len(self.unique))
        self.lengths = lengths[self.ids]

    @cached_property
    def ends(self) -> np.ndarray:
        """Characters of the words in front of each, and of all, int64 (count + 1,)."""
        ends = np.zeros(self.count + 1, np.int64)
        self.lengths.cumsum(out=ends[1:])
        return ends

    @cached_property
    def is_symbol(self) -> np.ndarray:
        """Which words have neither letters nor digits, bool (count,)."""
        return ~self._which(str.isalnum, _HAS_WORD_SIGN)

    @cached_property
    def has_letter(self) -> np.ndarray:
        """Which words have a letter, bool (count,)."""
        return self._which(str.isalpha, _HAS_LETTER)

    def _which(self, surely: Callable[[str], bool], pattern: re.Pattern[str]) -> np.ndarray:
        """Return in which words a pattern is found; most are known without asking it."""
        found = [surely(word) or pattern.search(word) is not None for word in self.unique]
        return np.array(found, bool)[self.ids]
