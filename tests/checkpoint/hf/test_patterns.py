"""Blocks as segments: they say the same, with as few blocks written out as can be."""

import random

import pytest

from maxlm.checkpoint.hf.patterns import segments_of

A, B, C = ({"mixer": {"window": size}} for size in (1, 2, 3))


def expanded(segments):
    """Return the blocks that segments say."""
    return [
        {key: value for key, value in block.items() if key != "repeat"}
        for segment in segments
        for _ in range(segment["repeat"])
        for block in segment["pattern"]
        for _ in range(block.get("repeat", 1))
    ]


def compiled(segments):
    """Return how many blocks are in all patterns."""
    return sum(block.get("repeat", 1) for segment in segments for block in segment["pattern"])


@pytest.mark.parametrize(
    ("blocks", "most"),
    [
        ([A] * 28, 1),
        ([A] * 3 + [B] * 58, 2),
        (([A] * 5 + [B]) * 4 + [A] * 2, 7),
        ([A, B] * 13, 2),
        ([A, B] * 13 + [A], 3),
        ([A, A, A, B] * 12, 4),
        ([A, B, C], 3),
        ([A], 1),
    ],
)
def test_known_patterns(blocks, most):
    segments = segments_of(blocks)
    assert expanded(segments) == blocks
    assert compiled(segments) == most


def test_equal_neighbours_are_written_once():
    assert segments_of(([A] * 5 + [B]) * 4) == [
        {"pattern": [{**A, "repeat": 5}, B], "repeat": 4},
    ]


def test_any_blocks():
    rng = random.Random(0)
    for _ in range(200):
        blocks = [rng.choice([A, B, C]) for _ in range(rng.randint(1, 40))]
        segments = segments_of(blocks)
        assert expanded(segments) == blocks
        assert compiled(segments) <= len(blocks)
