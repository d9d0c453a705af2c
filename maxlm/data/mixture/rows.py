"""A mixture as a pure function of the row's number: its source, and which of that source's rows it
is.

A stage of n sources with integer shares spreads each of them evenly: of the stage's first k rows
the first source has ceil(k s / S) of shares s of S, and the others share the rest in the same way,
one source after the other. So a share is kept to one row at every point, without a table, and the
order is that of grain's `MapDataset.mix`. A source goes on in a stage where it was at the end of
the one before.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Stage(NamedTuple):
    """Rows of one mixture.

    Attributes:
      start: its first row.
      shares: positive integers, by source.
    """

    start: int
    shares: Mapping[str, int]


class Mixture:
    """Stages one after the other, the last without an end."""

    def __init__(self, stages: Sequence[Stage]):
        assert stages[0].start == 0, "the first stage begins with row 0"
        self.stages = tuple(stages)
        self._starts = [stage.start for stage in stages]
        before: dict[str, int] = {}
        self._before = [before]
        for stage, following in itertools.pairwise(stages):
            own = rows_of_sources(following.start - stage.start, stage.shares)
            before = before | {name: before.get(name, 0) + count for name, count in own.items()}
            self._before.append(before)

    @property
    def sources(self) -> list[str]:
        """The names of all sources, sorted."""
        return sorted({name for stage in self.stages for name in stage.shares})

    def place(self, row: int) -> tuple[str, int]:
        """Return the source of a row, and its number among that source's rows."""
        number = self._stage_of(row)
        start, shares = self.stages[number]
        own = row - start
        before, after = rows_of_sources(own, shares), rows_of_sources(own + 1, shares)
        name = next(name for name in shares if after[name] > before[name])
        return name, self._before[number].get(name, 0) + before[name]

    def consumed(self, rows: int) -> dict[str, int]:
        """Return how many of rows [0, rows) are of each source."""
        number = self._stage_of(rows)
        start, shares = self.stages[number]
        own, before = rows_of_sources(rows - start, shares), self._before[number]
        return {name: before.get(name, 0) + own.get(name, 0) for name in self.sources}

    def until(self, rows: int) -> list[list[Any]]:
        """Return, as JSON, what decides about the sources of rows [0, rows): equal if and only if
        they are of the same stages.
        """
        return [
            [stage.start, _in_lowest_terms(stage.shares)]
            for stage in self.stages
            if stage.start < rows
        ]

    def _stage_of(self, row: int) -> int:
        return bisect.bisect_right(self._starts, row) - 1


def rows_of_sources(rows: int, shares: Mapping[str, int]) -> dict[str, int]:
    """Return how many of a stage's first rows are of each source."""
    counts, share_left = {}, sum(shares.values())
    for name, share in shares.items():
        others = rows * (share_left - share) // share_left
        counts[name] = rows - others
        rows, share_left = others, share_left - share
    return counts


def _in_lowest_terms(shares: Mapping[str, int]) -> dict[str, int]:
    divisor = math.gcd(*shares.values())
    return {name: share // divisor for name, share in shares.items()}
