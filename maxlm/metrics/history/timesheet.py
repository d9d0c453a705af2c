"""RUN_DIR/time.jsonl: what each start of a run spends its time on, line by line as it goes."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from maxlm.metrics.history.goodput import STEPS, Account, Goodput, Span
from maxlm.metrics.history.journal import Journal, read_journal
from maxlm.process import phases

log = logging.getLogger(__name__)

FILE = "time.jsonl"
SHORTEST = 1e-3
"""Seconds: what is shorter is counted with what comes next, without a line of its own."""


class TimeSheet:
    """Measure what a process spends its time on, and keep it in the run's folder.

    Time belongs to the phase that is open; without one, to the start and, once steps are counted,
    to them. A meter takes out of each phase what it measured in it.
    """

    def __init__(
        self,
        age_seconds: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ):
        """Begin to measure.

        Args:
          age_seconds: how long the process has been there.
          clock: seconds, never going back.
          wall: seconds of the day's clock.
        """
        self._clock, self._wall = clock, wall
        self._mark = clock() - age_seconds
        self._cause = "start"
        self._causes: set[str] = set()
        self.elsewhere_seconds = 0.0  # spent in phases, and to start
        self._step: int | None = None
        self._meters: dict[str, Callable[[], float]] = {}
        self._read: dict[str, float] = {}
        self._account = Account()
        self._start = 1
        self._journal: Journal | None = None

    @property
    def goodput(self) -> Goodput:
        """Of the run since it was created, until the last line."""
        return self._account.goodput

    @property
    def step(self) -> int | None:
        """Steps done, None before that is known."""
        return self._step

    @property
    def repeats(self) -> bool:
        """Whether this process has written down time of the same cause before, other than to start."""
        return self._cause != "start" and self._cause in self._causes

    def open(self, run_dir: Path) -> None:
        """Go on with the run's sheet, if it has one; all processes but the first keep none.

        Raises:
          OSError: the file cannot be read or written.
        """
        for record in read_journal(run_dir / FILE).records:
            span = Span.read(record)
            if span is not None:
                self._account.add(span)
        self._start = self._account.start + 1
        self._journal = Journal(run_dir / FILE)
        self.mark()

    def meter(self, cause: str, seconds: Callable[[], float]) -> None:
        """Count a running total of seconds as lost to a cause, whatever phase it grows in."""
        self._meters[cause], self._read[cause] = seconds, seconds()

    def count_steps(self, step: int) -> None:
        """From now on time goes into steps; `step` of them are done."""
        self.mark()
        self._cause = STEPS
        self._step = step

    def count_no_steps(self) -> None:
        """From now on time goes into the end of the process, which counts as the next one's start."""
        self.mark()
        self._cause = "start"

    def at(self, step: int) -> None:
        """Note how many steps are done."""
        self._step = step

    def mark(self) -> None:
        """Write down the time since the last line."""
        seconds = self._clock() - self._mark
        if seconds < SHORTEST:
            return
        self._mark += seconds
        self._causes.add(self._cause)
        self.elsewhere_seconds += seconds if self._cause != STEPS else 0.0
        spent = self._metered(seconds)
        spent[self._cause] = seconds - sum(spent.values())
        spent = {cause: round(seconds, 6) for cause, seconds in spent.items()}
        span = Span(self._start, round(self._wall(), 6), self._step, spent)
        self._account.add(span)
        self._write(span)

    @contextlib.contextmanager
    def phase(self, cause: str) -> Iterator[None]:
        """Be in a phase of the process, with its limit (`process.phases`), and count its time as lost
        to the cause of that name.
        """
        self.mark()
        around, self._cause = self._cause, cause
        try:
            with phases.phase(cause):
                yield
        finally:
            self.mark()
            self._cause = around

    def close(self) -> None:
        """Write down the rest and close the file."""
        self.mark()
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _metered(self, most: float) -> dict[str, float]:
        spent: dict[str, float] = {}
        for cause, meter in self._meters.items():
            before, self._read[cause] = self._read[cause], meter()
            seconds = min(max(self._read[cause] - before, 0.0), most - sum(spent.values()))
            if seconds > 0 and cause != self._cause:  # the phase's own needs no taking out
                spent[cause] = seconds
        return spent

    def _write(self, span: Span) -> None:
        if self._journal is None:
            return
        try:
            self._journal.append(span._asdict())
        except OSError as error:
            # Whoever saves or logs metrics ends a run whose disk is full, with a cure.
            log.warning("goodput is not kept any more: %s: %s", FILE, error.strerror or error)
            self._journal.close()
            self._journal = None


def process_age_seconds() -> float:
    """Return for how long this process has been there, libraries' loading included; 0 where the
    system does not say.
    """
    try:
        # Behind the command's name in brackets, which may have any signs: the 22nd field is the
        # start in ticks since the machine's.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)
    except (OSError, AttributeError, ValueError, IndexError):  # not Linux
        return 0.0
