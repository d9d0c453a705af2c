"""Text to numbers: the words of many texts at once, as hashes with their places, and runs of words
(n-grams) as hashes.

A word is a run of letters, marks and digits, in lower case; what stands between words does not
count. In scripts that put no spaces between words every character is a word. Read exactly, case
counts and every symbol is a word, too: only white space is left out. All of it is numpy over code
points, about 60 MB/s, and a pure function of each text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

BATCH_CHARACTERS = 2**18
"""Texts are best handed over in batches of about this many: the calls of numpy cost little then,
and the arrays still fit a core's cache."""

_PIECE = 2**16  # a longer text is cut into pieces, after a separator if there is one
_GROUP = 2**17  # code points in one pass
_CODE_POINTS = 0x40000  # nothing above is a letter: unassigned planes, tags and private use
_ALONE = 1 << 31  # mark of a character that is a word by itself
_SCRIPTS_WITHOUT_SPACES = (
    (0x0E00, 0x109F),  # Thai, Lao, Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # CJK radicals
    (0x3005, 0x3007),
    (0x3041, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFD),
)
# Odd, so that they have an inverse modulo 2^64.
_LETTER_BASE = 0x9E3779B97F4A7C15
_WORD_BASE = np.uint64(0xD1342543DE82EF95)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class Words:
    """The words of several texts, one text after the other.

    Attributes:
      hashes: uint64 (num_words,).
      starts: int64 (num_words,), the word's first character, counted from its text's beginning.
      ends: int64 (num_words,), the character after its last.
      offsets: int64 (num_texts + 1,), where each text's words begin.
    """

    hashes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class Grams:
    """The runs of n words of several texts, one text after the other; a text with fewer words has
    one run of them all, a text without words none.

    Attributes:
      hashes: uint64 (num_grams,).
      first: int64 (num_grams,), index of the run's first word in `Words`.
      offsets: int64 (num_texts + 1,), where each text's runs begin.
    """

    hashes: np.ndarray
    first: np.ndarray
    offsets: np.ndarray


def batches(items: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield lists of items with about BATCH_CHARACTERS together, of one item at least."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and size + size_of(item) > BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += size_of(item)
    if batch:
        yield batch


def hash_words(texts: Sequence[str], *, exactly: bool = False) -> Words:
    """Find and hash the words of texts.

    Args:
      exactly: tell upper from lower case, and let each symbol be a word.
    """
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    counts = np.zeros(len(texts) + 1, np.int64)
    table = _exact() if exactly else _fold()
    for group in _groups(texts, table):
        hashes, starts, ends, places = _pass([piece for _, _, piece in group], table)
        for (index, _, _), count in zip(group, np.diff(places), strict=True):
            counts[index + 1] += count
        shift = np.array([start for _, start, _ in group], np.int64).repeat(np.diff(places))
        parts.append((hashes, starts + shift, ends + shift))
    if not parts:
        none = np.empty(0, np.int64)
        return Words(np.empty(0, np.uint64), none, none, counts.cumsum())
    hashes, starts, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Words(hashes, starts, ends, counts.cumsum())


def word_grams(words: Words, size: int) -> Grams:
    """Hash every run of `size` words that stays within its text."""
    lengths = np.diff(words.offsets)
    counts = np.where(lengths == 0, 0, np.maximum(lengths - size + 1, 1))
    offsets = np.concatenate([[0], counts.cumsum()])
    first = np.arange(offsets[-1]) + (words.offsets[:-1] - offsets[:-1]).repeat(counts)
    padded = np.concatenate([words.hashes, np.zeros(size, np.uint64)])
    rolled = padded[: words.hashes.size].copy()
    for place in range(1, size):
        rolled *= _WORD_BASE
        rolled += padded[place : place + words.hashes.size]
    hashes = rolled[first]
    for text in np.flatnonzero((lengths > 0) & (lengths < size)):
        begin, end = words.offsets[text : text + 2]
        powers = np.full(end - begin, _WORD_BASE).cumprod()
        # Reversed, so that the order of the words matters as it does in longer texts.
        hashes[offsets[text]] = (words.hashes[begin:end] * powers[::-1]).sum(dtype=np.uint64)
    return Grams(mixed(hashes), first, offsets)


def rolling_hashes(words: np.ndarray, longest: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (size, hashes of all runs of that many words) for sizes from 1 on, across texts.

    The hash of a run is the same whatever `longest` is; hashes may be empty.
    """
    hashes = words
    yield 1, hashes
    for size in range(2, longest + 1):
        hashes = hashes[:-1] * _WORD_BASE + words[size - 1 :]
        yield size, hashes


def mixed(hashes: np.ndarray) -> np.ndarray:
    """Spread each number's bits over all 64, one to one (the finaliser of SplitMix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * _MIX
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _groups(texts: Sequence[str], table: np.ndarray) -> Iterator[list[tuple[int, int, str]]]:
    """Yield groups of (text's index, start, piece) of at most _GROUP code points together."""
    group: list[tuple[int, int, str]] = []
    size = 0
    for index, text in enumerate(texts):
        for start, piece in _pieces(text, table):
            if group and size + len(piece) + 1 > _GROUP:
                yield group
                group, size = [], 0
            group.append((index, start, piece))
            size += len(piece) + 1
    if group:
        yield group


def _pieces(text: str, table: np.ndarray) -> Iterator[tuple[int, str]]:
    """Cut a long text: where depends on the text alone, so its words do not on its neighbours."""
    start = 0
    while len(text) - start > _PIECE:
        piece = text[start : start + _PIECE]
        separators = np.flatnonzero(_letters(piece, table) == 0)
        end = int(separators[-1]) + 1 if separators.size else _PIECE
        yield start, piece[:end]
        start += end
    yield start, text[start:]


def _letters(text: str, table: np.ndarray) -> np.ndarray:
    """Return what a table has for each code point, uint32: a letter, 0 for a separator."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return table.take(points.astype(np.intp), mode="clip")


def _pass(
    pieces: Sequence[str], table: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return hashes, starts and ends (within their piece) of the words, and where each piece's
    begin.
    """
    letters = np.zeros(sum(map(len, pieces)) + len(pieces) + 1, np.uint32)
    letters[1:-1] = _letters("\n".join(pieces), table)
    inside = letters != 0
    within = inside[1:] & inside[:-1]
    alone = letters >= _ALONE
    if alone.any():
        within &= ~(alone[1:] | alone[:-1])
    # Position i of these stands for the border before letter i, in an array that starts with a
    # border of its own.
    firsts = np.flatnonzero(inside[1:] & ~within)
    lasts = np.flatnonzero(inside[:-1] & ~within)
    powers, inverses = _powers()
    sums = np.zeros(letters.size, np.uint64)
    np.cumsum(letters[1:] * powers[: letters.size - 1], out=sums[1:])
    # A word's letters times consecutive powers, from the power 0 on wherever it stands.
    hashes = (sums[lasts] - sums[firsts]) * inverses[firsts]
    bases = np.concatenate([[0], np.cumsum([len(piece) + 1 for piece in pieces])])
    places = np.searchsorted(firsts, bases)
    shift = bases[:-1].repeat(np.diff(places))
    return mixed(hashes), firsts - shift, lasts - shift, places


@cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """Return the powers of the base and of its inverse modulo 2^64, from 0 on."""
    count = _GROUP + 2
    inverse = pow(_LETTER_BASE, -1, 2**64)
    bases = np.array([_LETTER_BASE, inverse], np.uint64)[:, None].repeat(count, axis=1)
    bases[:, 0] = 1
    powers = bases.cumprod(axis=1, dtype=np.uint64)
    return powers[0], powers[1]


@cache
def _fold() -> np.ndarray:
    """Return the table of code points: lower-case letters, marked if each is a word, or 0."""
    table = np.zeros(_CODE_POINTS, np.uint32)
    for point in range(_CODE_POINTS - 1):
        character = chr(point)
        if unicodedata.category(character)[0] in "LNM":
            lower = character.lower()
            table[point] = ord(lower) if len(lower) == 1 else point
    for first, last in _SCRIPTS_WITHOUT_SPACES:
        table[first : last + 1] |= np.where(table[first : last + 1], np.uint32(_ALONE), 0)
    return table


@cache
def _exact() -> np.ndarray:
    """Return the table of code points as they are, symbols marked as words, or 0 for space."""
    points = np.arange(_CODE_POINTS, dtype=np.uint32)
    letters = _fold()
    table = points | np.where(letters, letters & np.uint32(_ALONE), np.uint32(_ALONE))
    table[[point for point in range(0x3001) if chr(point).isspace()]] = 0
    table[-1] = 0  # stands for all code points beyond the table
    return table
