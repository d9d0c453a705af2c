"""What a check finds: a line, how bad it is, and the cure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

MOST_NAMES = 8


class Level(IntEnum):
    """How bad it is."""

    OK = 0
    WARNING = 1
    PROBLEM = 2


class Finding(NamedTuple):
    """The result of one check; the same on every process.

    Attributes:
      check: name of what was looked at.
      level: how bad it is.
      text: what was found, in a line.
      cure: what to do about it, empty if nothing.
      values: the figures, as JSON can hold them.
    """

    check: str
    level: Level
    text: str
    cure: str = ""
    values: dict[str, Any] = {}

    def __str__(self) -> str:
        return f"{self.text}; {self.cure}" if self.cure else self.text


def worst(findings: Iterable[Finding]) -> Level:
    """Return the level of the worst of them."""
    return max((finding.level for finding in findings), default=Level.OK)


def names(hosts: Iterable[str]) -> str:
    """Return names in a line, each once, not more than a reader would read."""
    listed = list(dict.fromkeys(hosts))
    more = f" and {len(listed) - MOST_NAMES} more" if len(listed) > MOST_NAMES else ""
    return ", ".join(listed[:MOST_NAMES]) + more


def median(values: Sequence[float]) -> float:
    """Return the middle value, the lower of two."""
    return sorted(values)[(len(values) - 1) // 2]
