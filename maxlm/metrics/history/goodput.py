"""Where the time of a run goes, over all its starts: into steps that count, or lost to a cause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

STEPS = "steps"
"""What a run is for: the cause of time that is not lost."""

LOSSES = {
    "start": "processes that start and end: libraries, devices, data, the first parameters",
    "compile": "compiling programs",
    "restore": "reading checkpoints",
    "input": "waiting for data",
    "save": "waiting for checkpoints",
    "evaluation": "evaluations",
    "redone": "steps that a restart did again, because they were after its checkpoint",
    "idle": "no process ran, or it died before its next line",
}
"""What time is lost to, and what that means."""

MOST_DRIFT = 1_000_000
"""Microseconds by which the clock and a process' own measure of time may differ from line to line."""


class Span(NamedTuple):
    """A stretch of time of one start of a run; those of a start follow each other without a gap.

    Attributes:
      start: which start of the run, from 1.
      time: the clock at its end, in seconds.
      step: steps done at its end; None where that is not known, before the state is there.
      spent: seconds by cause; together they are the stretch, whatever the clock says.
    """

    start: int
    time: float
    step: int | None
    spent: Mapping[str, float]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Span | None:
        """Return the span that a line of RUN_DIR/time.jsonl holds; None if it holds none."""
        start, time, step = (record.get(name) for name in ("start", "time", "step"))
        spent = record.get("spent")
        numbers = [time, *spent.values()] if isinstance(spent, dict) else [None]
        if not all(_is_number(number) for number in numbers) or not _is_count(start):
            return None
        if not (step is None or _is_count(step)) or not {STEPS, *LOSSES} >= {*spent}:  # type: ignore[misc]
            return None
        return cls(start, time, step, spent)  # type: ignore[arg-type]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e11


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


class Goodput(NamedTuple):
    """Seconds of a run by what they went into: STEPS and LOSSES, all of them."""

    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        """Seconds since the run was created, until its last line."""
        return sum(self.seconds.values())

    @property
    def fraction(self) -> float:
        """Share of the time that went into steps that count."""
        return self.seconds[STEPS] / self.total if self.total else 0.0


class Account:
    """Add up a run's spans, in their order.

    Counts whole microseconds, so that parts are exactly the whole.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys((STEPS, *LOSSES), 0)
        # (first step, last step, microseconds) of the steps that count.
        self._counting: list[tuple[int, int, int]] = []
        self._step = 0
        self._start, self._time = 0, 0

    @property
    def goodput(self) -> Goodput:
        """What the time went into so far."""
        return Goodput({cause: micro / 1e6 for cause, micro in self._seconds.items()})

    @property
    def start(self) -> int:
        """The newest start; 0 before the first."""
        return self._start

    def add(self, span: Span) -> None:
        """Take account of one more span."""
        spent = {cause: _micro(seconds) for cause, seconds in span.spent.items()}
        self._add_idle(span, _micro(span.time) - sum(spent.values()))
        if span.step is not None and span.step < self._step:
            self._take_back(span.step)
        for cause, micro in spent.items():
            self._seconds[cause] += micro
        step = self._step if span.step is None else span.step
        if STEPS in spent:
            self._counting.append((min(self._step, step), step, spent[STEPS]))
        self._step, self._start, self._time = step, span.start, _micro(span.time)

    def _add_idle(self, span: Span, began: int) -> None:
        """Count what lies between two spans; a clock that was put back makes it nothing."""
        gap = began - self._time
        # Within a start there is none, but for a lost line or a machine that slept.
        least = 0 if span.start != self._start else MOST_DRIFT
        if self._start and gap > least:
            self._seconds["idle"] += gap

    def _take_back(self, step: int) -> None:
        """Count the steps after this one as done again."""
        while self._counting and self._counting[-1][1] > step:
            first, last, micro = self._counting.pop()
            kept = micro * max(step - first, 0) // (last - first) if last > first else 0
            if kept:
                self._counting.append((first, step, kept))
            self._seconds[STEPS] -= micro - kept
            self._seconds["redone"] += micro - kept


def goodput_of(spans: Iterable[Span]) -> Goodput:
    """Return what the time of a run went into, by its spans from the first on."""
    account = Account()
    for span in spans:
        account.add(span)
    return account.goodput


def _micro(seconds: float) -> int:
    return round(seconds * 1e6)
