"""Which layers each stage of a pipeline holds.

A segment of the model is R repetitions of its pattern, and each parameter of the pattern has a row
for each of them. Virtual stage v S + s is chunk v of stage s (`maxlm.sharding.pipeline`) and holds
a run of consecutive repetitions, of one segment or of several. All devices run the same program
over arrays of the same shape: a stage has as many rows of a segment as the virtual stage that holds
most of it, and rows without a layer where it holds fewer. Those are skipped (see
`maxlm.sharding.pipeline.on_some_stages`), cost their bytes, and stay zero.

Modules for further tokens run behind the last layer, so the last virtual stage has them, and fewer
layers for that.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

EMPTY = -1
"""In place of the number of a repetition: a row that holds none."""


class SegmentRows(NamedTuple):
    """How the repetitions of a segment lie in its stacked parameters.

    Attributes:
      repetitions: which one each row holds, or `EMPTY`; the rows of a stage lie together, chunk
        after chunk.
      rows: rows of one chunk of one stage.
    """

    repetitions: tuple[int, ...]
    rows: int

    def counts(self) -> list[int]:
        """Return how many rows of each chunk of each stage hold a layer; they come first."""
        chunks = [
            self.repetitions[i : i + self.rows]
            for i in range(0, len(self.repetitions), self.rows or 1)
        ]
        return [sum(repetition != EMPTY for repetition in chunk) for chunk in chunks]


class Layout(NamedTuple):
    """The layers of a model on the stages of a pipeline.

    Attributes:
      segments: a segment after the other.
      imbalance: work of the virtual stage that does most, over the mean of what there is to do.
      stages: S; each has a row for every module behind the layers, which the last one's holds.
    """

    segments: tuple[SegmentRows, ...]
    imbalance: float = 1.0
    stages: int = 1

    def module_rows(self, layer: int) -> tuple[int, ...]:
        """Return what the rows of a module hold that is this layer of the model."""
        return (*[EMPTY] * (self.stages - 1), layer)

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint says of it."""
        return {
            "layout": [list(segment.repetitions) for segment in self.segments],
            "stages": self.stages,
        }


def recorded_layout(record: Mapping[str, Any]) -> Layout:
    """Return in which rows a checkpoint has the layers; its work is not known any more."""
    segments = (SegmentRows(tuple(rows), len(rows)) for rows in record["layout"])
    # Checkpoints that do not say it are older than pipelines with modules, for which alone it matters.
    return Layout(tuple(segments), stages=record.get("stages", 1))


def lay_out(
    repeats: Sequence[int],
    work: Sequence[float] = (),
    *,
    stages: int = 1,
    chunks: int = 1,
    behind: float = 0.0,
    skipped: bool = True,
) -> Layout:
    """Share the repetitions of all segments out among the virtual stages, so that the slowest has
    as little as can be.

    Args:
      repeats: repetitions of each segment.
      work: of one repetition of each segment, in any unit; all the same by default.
      stages: S, devices along `stage`.
      chunks: V, virtual stages of a stage.
      behind: work of the modules behind the layers, all together.
      skipped: whether a stage does nothing for rows that hold no layer, and for modules that are
        not its own.
    """
    work = work or [1.0] * len(repeats)
    pieces = [(segment, index) for segment, repeat in enumerate(repeats) for index in range(repeat)]
    parts = stages * chunks
    shares = _fair_shares([work[segment] for segment, _ in pieces], parts, behind)
    bounds = list(itertools.accumulate(shares, initial=0))
    held = [pieces[start:end] for start, end in itertools.pairwise(bounds)]
    segments = []
    for segment in range(len(repeats)):
        of_parts = [[index for owner, index in part if owner == segment] for part in held]
        rows = max(map(len, of_parts))
        filled = [part + [EMPTY] * (rows - len(part)) for part in of_parts]
        in_memory = [
            filled[chunk * stages + stage] for stage in range(stages) for chunk in range(chunks)
        ]
        segments.append(SegmentRows(tuple(itertools.chain(*in_memory)), rows))
    loads = [sum(work[segment] for segment, _ in part) for part in held]
    loads[-1] += behind
    all_rows = behind + sum(one.rows * each for one, each in zip(segments, work, strict=True))
    done = max(loads) if skipped else all_rows
    return Layout(tuple(segments), done * parts / sum(loads), stages)


def _fair_shares(pieces: Sequence[float], parts: int, behind: float) -> list[int]:
    """Cut a row of pieces into runs whose largest sum is the least possible, and which are
    otherwise about equal.

    Args:
      pieces: their work.
      parts: how many runs.
      behind: work that the last run has besides: a piece of its own that only the last can have.

    Returns:
      pieces in each run.
    """
    work = [*pieces, behind] if behind else pieces
    sums = list(itertools.accumulate(work, initial=0.0))
    low, high = max(*work, sums[-1] / parts), sums[-1]
    for _ in range(64):  # as exact as the numbers are
        middle = (low + high) / 2
        low, high = (low, middle) if _fits(sums, middle, parts) else (middle, high)
    limit = high * (1 + 1e-12)
    needed, shares, start = _parts_needed(sums, limit), list[int](), 0
    for left in range(parts, 1, -1):
        # As near to an equal share as the limit allows, here and in what is left for the others.
        reach = min(_reach(sums, start, limit), len(pieces))
        ends = [end for end in range(start, reach + 1) if needed[end] < left]
        rest = sums[-1] - sums[start]
        target = sums[start] + min(rest / left, (rest - behind) / (left - 1))
        end = min(ends, key=lambda end: abs(sums[end] - target))
        shares.append(end - start)
        start = end
    return [*shares, len(pieces) - start]


def _fits(sums: Sequence[float], limit: float, parts: int) -> bool:
    """Return whether the pieces make so many runs of at most `limit` each."""
    end = 0
    for _ in range(parts):
        end = _reach(sums, end, limit)
    return end == len(sums) - 1


def _parts_needed(sums: Sequence[float], limit: float) -> list[int]:
    """Return how many runs of at most `limit` each the pieces from each one on need."""
    needed = [0] * len(sums)
    for start in range(len(sums) - 2, -1, -1):
        needed[start] = 1 + needed[max(_reach(sums, start, limit), start + 1)]
    return needed


def _reach(sums: Sequence[float], start: int, limit: float) -> int:
    """Return the end of the longest run from a piece on whose sum is at most `limit`."""
    return bisect.bisect_right(sums, sums[start] + limit) - 1
