"""What a detector is, what it looks at, and what it finds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

# Six digits or more with little between them. Digits and others exclude each other, so this is linear.
_NUMBERS = re.compile(r"\d(?:[^\d\n]{0,6}\d){5,}")
_MARGIN = 12
"""Characters around the digits that a number may begin and end with."""


class Span(NamedTuple):
    """A part of a text and the type of personal data that it is."""

    start: int
    end: int
    kind: str


class Subject:
    """A text that is searched, and where in it numbers are."""

    def __init__(self, text: str):
        self.text = text

    @cached_property
    def lower(self) -> str:
        """The text in lower case, for looking whether some word is in it at all."""
        return self.text.lower()

    @cached_property
    def numbers(self) -> list[tuple[int, int]]:
        """Begins and ends of the parts with long numbers in them, in order, none within another."""
        parts: list[tuple[int, int]] = []
        for match in _NUMBERS.finditer(self.text):
            start, end = match.start() - _MARGIN, match.end() + _MARGIN
            if parts and start <= parts[-1][1]:
                parts[-1] = parts[-1][0], end
            else:
                parts.append((max(start, 0), end))
        return parts


@dataclass(frozen=True)
class Detector:
    """A pattern and what else must be true of its matches.

    Attributes:
      pattern: linear in the text: bounded repetitions, and none inside another. A group called
        `value` is the part that is personal; without one, all of the match is.
      accepts: tells real ones from what only looks so.
      hints: in a text with none of these in lower case there is no match.
      numeric: its matches have at least six digits: only parts with numbers are looked at.
    """

    pattern: re.Pattern[str]
    accepts: Callable[[re.Match[str]], bool] = lambda _: True
    hints: tuple[str, ...] = ()
    numeric: bool = False

    def find(self, subject: Subject, kind: str) -> Iterator[Span]:
        """Yield what it finds in a text."""
        if self.hints and not any(hint in subject.lower for hint in self.hints):
            return
        group = "value" if "value" in self.pattern.groupindex else 0
        parts = subject.numbers if self.numeric else [(0, len(subject.text))]
        for start, end in parts:
            for match in self.pattern.finditer(subject.text, start, end):
                if self.accepts(match):
                    yield Span(match.start(group), match.end(group), kind)


def words_before(match: re.Match[str], chars: int) -> str:
    """Return the text just before a match, in lower case."""
    return match.string[max(match.start() - chars, 0) : match.start()].lower()
