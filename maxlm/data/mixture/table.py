"""What a run reads of each source, as a table that people see before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from maxlm.data.mixture.rows import Mixture, rows_of_sources

HEADINGS = ("source", "tokens", "reads", "share", "epochs", "again", "not read")


@dataclass(frozen=True)
class SourceReading:
    """What a run reads of a source, in tokens.

    Attributes:
      available: in one pass over it.
      read: by the run.
      total: that the run reads of all sources.
    """

    name: str
    available: int
    read: int
    total: int

    @property
    def epochs(self) -> float:
        """How often it is read."""
        return self.read / self.available

    @property
    def again(self) -> int:
        """Tokens that are read once more, however often."""
        return max(self.read - self.available, 0)

    @property
    def unread(self) -> int:
        """Tokens that the run does not come to."""
        return max(self.available - self.read, 0)

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        numbers = (f"{self.available:,}", f"{self.read:,}", f"{self.read / self.total:.1%}")
        return (self.name, *numbers, f"{self.epochs:.2f}", f"{self.again:,}", f"{self.unread:,}")


def readings(
    mixture: Mixture, windows: Mapping[str, int], *, length: int, rows: int
) -> list[SourceReading]:
    """Return what a run of so many rows of `length` tokens reads of each source."""
    consumed = mixture.consumed(rows)
    return [
        SourceReading(name, count * length, consumed.get(name, 0) * length, rows * length)
        for name, count in windows.items()
    ]


def stage_lines(mixture: Mixture, *, length: int, rows: int) -> Iterator[str]:
    """Yield a line for each stage: from which token to which, and the sources' shares."""
    ends = [*(stage.start for stage in mixture.stages[1:]), rows]
    for number, (stage, end) in enumerate(zip(mixture.stages, ends, strict=True)):
        end = min(end, rows)
        if stage.start >= rows:
            yield f"stage {number}: from token {stage.start * length:,}, which the run does not reach"
            continue
        counts = rows_of_sources(end - stage.start, stage.shares)
        parts = [f"{name} {count / (end - stage.start):.1%}" for name, count in counts.items()]
        yield f"stage {number}: tokens {stage.start * length:,} to {end * length:,}: {', '.join(parts)}"


def table_lines(found: Sequence[SourceReading], *, length: int) -> list[str]:
    """Return the table as lines, numbers to the right; a source's last tokens, which are less than a
    row of `length`, are in none of them.
    """
    rows = [HEADINGS, *(one.cells for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [*lines, f"(tokens in whole rows of {length:,})"]
