"""What is added to scores by distance: slopes of heads, and buckets of distances."""

from __future__ import annotations

import functools

import numpy as np


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Return how much each head's scores fall per token, fp32 (N,) (arXiv:2108.12409, 3).

    For a power of two, 2^(-8 n / N) for n = 1 ... N. For other numbers those of the power of two
    below, and, to fill up, every other one of twice that power, as in the authors' code.
    """
    below = 1 << num_heads.bit_length() - 1
    slopes = _geometric(below)
    slopes += _geometric(2 * below)[::2][: num_heads - below]
    return np.asarray(slopes, np.float32)


def _geometric(count: int) -> list[float]:
    return [2 ** (-8 * number / count) for number in range(1, count + 1)]


@functools.cache
def bucket_edges(num_buckets: int, max_distance: int) -> tuple[int, ...]:
    """Return the distances at which buckets 1, 2 ... start (arXiv:1910.10683, 2.1, for a decoder).

    With m = num_buckets // 2, distances below m have a bucket each. Distance d from there on is in
    bucket m + floor((num_buckets - m) log(d / m) / log(max_distance / m)), at most the last: bucket
    m + i starts at the least d with d^n >= m^(n - i) max_distance^i, n = num_buckets - m. In whole
    numbers, so that no rounding moves an edge.
    """
    exact = num_buckets // 2
    grown = num_buckets - exact

    def starts(number: int) -> int:
        bound = exact ** (grown - number) * max_distance**number
        # Of the right size, then right.
        edge = max(exact, int(exact * (max_distance / exact) ** (number / grown)) - 2)
        while edge**grown < bound:
            edge += 1
        return edge

    return (*range(1, exact), *(starts(number) for number in range(grown)))
