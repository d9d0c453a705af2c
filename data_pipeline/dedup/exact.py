"""Exact copies: 128 bits of SHA-256 of a text's words as they stand, for documents, paragraphs or
lines.

Among 10^12 lines two different ones share these bits with probability 10^-15.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Literal

import numpy as np

Unit = Literal["document", "paragraph", "line"]

_BLANK_LINES = re.compile(r"(\n(?:[^\S\n]*\n)+)")


def units_of(text: str, unit: Unit) -> list[str]:
    """Cut a text into units: they follow each other without a gap, what separates them belongs to
    the one before.
    """
    if unit == "document":
        return [text]
    if unit == "line":
        lines = text.split("\n")
        return [line + "\n" for line in lines[:-1]] + lines[-1:]
    parts = _BLANK_LINES.split(text)
    return ["".join(parts[place : place + 2]) for place in range(0, len(parts), 2)]


def digests(
    units: Iterable[str], *, ignore_case: bool, min_words: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the units of at least `min_words` words, int64 (num,), and uint64 (2, num): the first
    128 bits of SHA-256 of each one's words, joined by single spaces.
    """
    rows, found = [], []
    for row, unit in enumerate(units):
        words = (unit.casefold() if ignore_case else unit).split()
        if len(words) >= min_words:
            normalised = " ".join(words).encode("utf-8", "surrogatepass")
            rows.append(row)
            found.append(hashlib.sha256(normalised).digest()[:16])
    # Big-endian, so that the numbers sort as the digests do; native again for numpy's speed.
    halves = np.frombuffer(b"".join(found), ">u8").astype(np.uint64)
    return np.array(rows, np.int64), halves.reshape(-1, 2).T
