"""Hashed words and pairs of neighbouring words of a text, found in numpy without a loop over words.

The hash of a word is a polynomial of its characters modulo 2^64, so all words' hashes are
differences of one running sum; a mixing function then spreads them over the buckets (feature
hashing, arXiv:0902.2206).
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np

from data_pipeline.heuristics.text import SPACELESS_SIGN

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_PAIR = np.uint64(0xC2B2AE3D27D4EB4F)
_MODULUS = 2**64
_WORD, _ALONE = 1, 2  # kinds of characters; 0 separates words
_WITH_NAMES = 0x20000  # code points whose category is asked; those above are ideographs or nothing


def grams(text: str, bits: int, max_chars: int) -> np.ndarray:
    """Return the buckets of a text's words and of its pairs of neighbours, with repeats.

    Letters count in lower case. A character of a script without spaces is a word.

    Args:
      bits: there are 2^bits buckets.
      max_chars: characters that are looked at, from the start.

    Returns:
      uint32 (2 * num_words - 1,), or (0,) if there is no word.
    """
    words = _word_hashes(text[:max_chars].lower())
    pairs = _mixed(words[:-1] * _PAIR + words[1:])
    return (np.concatenate([words, pairs]) >> np.uint64(64 - bits)).astype(np.uint32)


def _word_hashes(text: str) -> np.ndarray:
    if text.isascii():
        signs, kinds = np.frombuffer(text.encode(), np.uint8), _ascii_kinds()
    else:
        # np.uint32 is what a character is, whatever UTF-8 makes of it.
        signs = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = _all_kinds()
    kind = np.zeros(signs.size + 2, np.uint8)  # with a separator at each end
    kind[1:-1] = kinds[signs]
    alone = kind[1:-1] == _ALONE
    in_word = kind == _WORD
    first = np.flatnonzero(alone | (in_word[1:-1] & ~in_word[:-2]))
    last = np.flatnonzero(alone | (in_word[1:-1] & ~in_word[2:]))
    powers, inverses = _powers(_size_of_table(signs.size))
    sums = np.zeros(signs.size + 1, np.uint64)
    np.cumsum(signs * powers[: signs.size], out=sums[1:])
    return _mixed((sums[last + 1] - sums[first]) * inverses[first])


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """Return the hashes with every bit of the input in every bit (the finaliser of SplitMix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _size_of_table(size: int) -> int:
    """Return a power of two, so that few tables are made."""
    return max(2**17, 1 << size.bit_length())


@cache
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the powers of the base from 0, and their inverses, uint64 (size,) each."""
    inverse = pow(_BASE, -1, _MODULUS)
    powers = (np.full(size, factor, np.uint64) for factor in (_BASE, inverse))
    return tuple(_exclusive_products(factors) for factors in powers)  # type: ignore[return-value]


def _exclusive_products(factors: np.ndarray) -> np.ndarray:
    factors[0] = 1
    return np.multiply.accumulate(factors)


@cache
def _ascii_kinds() -> np.ndarray:
    return _all_kinds()[:128].copy()


@cache
def _all_kinds() -> np.ndarray:
    """Return the kind of each code point."""
    kinds = np.zeros(0x110000, np.uint8)
    kinds[_WITH_NAMES:0x40000] = _ALONE
    for code in range(_WITH_NAMES):
        sign = chr(code)
        if SPACELESS_SIGN.match(sign):
            kinds[code] = _ALONE
        elif sign.isalnum() or unicodedata.category(sign)[0] == "M":
            kinds[code] = _WORD
    return kinds
