"""Min-hash signatures of sets of n-grams, and the band keys that nearly equal sets share (Broder
1997; Leskovec et al., Mining of Massive Datasets, ch. 3).

Two sets of Jaccard similarity s agree in one row of the signature with probability s, so they share
one of b bands of r rows with probability 1 - (1 - s^r)^b.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np

from data_pipeline.dedup.words import Grams, mixed

_ROW_BASE = np.uint64(0xA0761D6478BD642F)


def band_keys(grams: Grams, *, bands: int, rows: int) -> np.ndarray:
    """Return the band keys of each text's set of n-grams, uint64 (bands, num_texts); all texts
    without words share theirs.
    """
    signature = _signature(grams, bands * rows).reshape(bands, rows, -1)
    keys = np.zeros((bands, signature.shape[-1]), np.uint64)
    for row in range(rows):
        keys = keys * _ROW_BASE + signature[:, row]
    return mixed(keys)


def _signature(grams: Grams, count: int) -> np.ndarray:
    """Return uint32 (count, num_texts): the least of each of `count` hashes of a text's n-grams."""
    least = np.full((count, grams.offsets.size - 1), 2**32 - 1, np.uint32)
    filled = np.flatnonzero(np.diff(grams.offsets))
    if filled.size == 0:
        return least
    # Upper half: 32 bits let the processor work on twice as many at a time. An n-gram's hash is
    # random already, so a product with an odd number modulo 2^32 orders n-grams at random.
    halves = (grams.hashes >> np.uint64(32)).astype(np.uint32)
    starts = grams.offsets[:-1][filled]
    hashed = np.empty_like(halves)
    for place, (multiplier, offset) in enumerate(_constants(count)):
        np.multiply(halves, multiplier, out=hashed)
        hashed += offset  # or an n-gram of hash 0 would be everybody's least
        least[place, filled] = np.minimum.reduceat(hashed, starts)
    return least


@cache
def _constants(count: int) -> np.ndarray:
    """Return the multipliers (odd) and offsets of the hashes, uint32 (count, 2)."""
    numbers = np.frombuffer(hashlib.shake_256(b"maxlm minhash").digest(8 * count), "<u4")
    return numbers.astype(np.uint32).reshape(count, 2) | np.array([1, 0], np.uint32)
