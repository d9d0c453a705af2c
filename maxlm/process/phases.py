"""What this process is doing, since when, and how long it may: start, restore, compile, step,
evaluation, save.

Everything that may take long runs inside `with phase(NAME)`, and says `beat()` when it gets on. The
watchdog and the heartbeat read it from threads of their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PHASES = ("start", "restore", "compile", "step", "evaluation", "save")

BEFORE_TRAINING = ("start", "restore", "compile")


class Place(NamedTuple):
    """Where a process is.

    Attributes:
      phase: one of PHASES.
      step: steps done, None before the first.
      seconds: since the phase began, or since it last got on.
      waits: whether it waits for devices, and so for other processes.
      own_seconds: of a step, by the median of the last ones, in which the process was at work itself
        and did not wait for devices and other processes; None before the first.
    """

    phase: str
    step: int | None
    seconds: float
    waits: bool
    own_seconds: float | None


class Overdue(NamedTuple):
    """A phase that has taken too long; the seconds it may take."""

    place: Place
    limit: float

    @property
    def setting(self) -> str:
        """The setting that says how long."""
        return f"runtime.timeouts.{self.place.phase}_seconds"


class Phases:
    """The phases of one process; written by its main thread, read by all."""

    RECENT = 32

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limits: Mapping[str, float | None] = {}
        named = os.environ.get("MAXLM_HEARTBEAT")
        self._file = Path(named) if named else None
        self._since: tuple[tuple[str, ...], float] = (
            ("start",),
            clock(),
        )  # one pair, which threads read together
        self._step: int | None = None
        self._has_begun = False
        self._waits, self._waited, self._own = False, 0.0, list[float]()

    def limit(self, limits: Mapping[str, float | None]) -> None:
        """Say how long each phase may take without a beat; None: for ever."""
        self._limits = limits

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Be in a phase until the end of the block; then in the one before, which begins anew."""
        assert name in PHASES, name
        outer, _ = self._since
        self._enter((*outer, name))
        try:
            yield
        finally:
            self._enter(outer)

    def beat(self) -> None:
        """The phase gets on: its time begins anew."""
        self._enter(self._since[0])

    def stepped(self, step: int) -> None:
        """A step is done: `step` of them by now."""
        stack, since = self._since
        if self._step is not None and step == self._step + 1:
            self._own = [*self._own[1 - self.RECENT :], self._clock() - since - self._waited]
        self._step = step
        self._enter(stack)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block the process waits for devices, and so for other processes."""
        if self._waits:  # inside another such block, which counts
            yield
            return
        began, self._waits = self._clock(), True
        try:
            yield
        finally:
            self._waits = False
            self._waited += self._clock() - began

    def current(self) -> Place:
        """Return where the process is."""
        stack, since = self._since
        own = sorted(self._own)
        median = own[len(own) // 2] if own else None
        return Place(stack[-1], self._step, self._clock() - since, self._waits, median)

    def remaining(self) -> float | None:
        """Return the seconds that the phase has left; None if it may last for ever."""
        place = self.current()
        limit = self._limits.get(place.phase)
        return None if limit is None else limit - place.seconds

    def overdue(self) -> Overdue | None:
        """Return the phase if it has taken longer than it may."""
        place = self.current()
        limit = self._limits.get(place.phase)
        return Overdue(place, limit) if limit is not None and place.seconds > limit else None

    def _enter(self, stack: tuple[str, ...]) -> None:
        self._since, self._waited = (stack, self._clock()), 0.0
        # For watchers outside, such as a pod's probes, which have a limit of their own for the
        # start. After it they look at all phases: a roll-back restores and compiles, too.
        self._has_begun = self._has_begun or stack[-1] not in BEFORE_TRAINING
        if self._file is not None and self._has_begun:
            self._file.touch()


_here = Phases()
limit, phase, beat, stepped = _here.limit, _here.phase, _here.beat, _here.stepped
waiting, current = _here.waiting, _here.current
remaining, overdue = _here.remaining, _here.overdue
