"""Blocks one after the other, written as segments of repeated patterns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LONGEST_PATTERN = 16
"""Of blocks that are different: all of them are compiled."""


def segments_of(blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return segments that say the blocks with as few of them written out as can be.

    Args:
      blocks: what each block has of its own, besides `model.block`.

    Returns:
      segments as `model.segments` has them, each with its `repeat`.
    """
    # best[i]: how many blocks are compiled for those from i on, segments, and the first of these.
    best: list[tuple[int, int, int, int]] = [(0, 0, 0, 0)] * (len(blocks) + 1)
    for start in range(len(blocks) - 1, -1, -1):
        options = []
        for length in range(1, min(LONGEST_PATTERN, len(blocks) - start) + 1):
            repeat = 1
            while _repeats(blocks, start, length, repeat):
                cost, segments, *_ = best[start + length * repeat]
                options.append((cost + length, segments + 1, length, repeat))
                repeat += 1
        best[start] = min(options)
    result: list[dict[str, Any]] = []
    start = 0
    while start < len(blocks):
        _, _, length, repeat = best[start]
        pattern = [dict(block) for block in blocks[start : start + length]]
        result.append({"pattern": _runs(pattern), "repeat": repeat})
        start += length * repeat
    return result


def _repeats(blocks: Sequence[Mapping[str, Any]], start: int, length: int, repeat: int) -> bool:
    """Return whether the pattern stands there once more, after `repeat` - 1 times."""
    first, last = start + length * (repeat - 1), start + length * repeat
    return last <= len(blocks) and list(blocks[start : start + length]) == list(blocks[first:last])


def _runs(pattern: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write equal blocks that follow each other as one that is repeated."""
    runs: list[dict[str, Any]] = []
    for block in pattern:
        same = bool(runs) and {**runs[-1], "repeat": 1} == {**block, "repeat": 1}
        if same:
            runs[-1]["repeat"] = runs[-1].get("repeat", 1) + 1
        else:
            runs.append(dict(block))
    return runs
