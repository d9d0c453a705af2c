"""Shapes that programs are compiled for: few, so that most calls find one that is there."""

from __future__ import annotations

BLOCK = 64
"""The least length; others are multiples of it."""


def length_bucket(length: int) -> int:
    """Return the length that a sequence is filled up to: 64, 128, ..., 512, then four between each
    power of two and the next, so that less than a quarter is filling.
    """
    step = max(BLOCK, (1 << max(length - 1, 0).bit_length()) // 8)
    return -(-length // step) * step


def rows_bucket(rows: int, devices: int) -> int:
    """Return how many rows a batch is filled up to: the devices that split it, times a power of
    two.
    """
    each = -(-rows // devices)
    return devices * (1 << (each - 1).bit_length())
