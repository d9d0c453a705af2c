"""Exact copies: 128 bits of SHA-256 of a text's words as they stand, for documents, paragraphs or
lines.

Among 10^12 lines two different ones share these bits with probability 10^-15.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
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


def digests(units: Iterable[str], *, ignore_case: bool) -> np.ndarray:
    """Return uint64 (2, num_units): the first 128 bits of SHA-256 of each unit's words, joined by
    single spaces.
    """
    raw = b"".join(_normalised_digests(units, ignore_case=ignore_case))
    # Big-endian, so that the numbers sort as the digests do; native again for numpy's speed.
    return np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, 2).T


def _normalised_digests(units: Iterable[str], *, ignore_case: bool) -> Iterator[bytes]:
    for unit in units:
        words = (unit.casefold() if ignore_case else unit).split()
        yield hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).digest()[:16]
