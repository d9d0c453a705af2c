"""What a process tells the others of a run: phase, step, its own time. Pure functions judge it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from maxlm.process.phases import Place

STRAGGLES = 1.5
"""Times the median of all processes."""
STRAGGLER_SECONDS = 0.02
"""Above the median: less is noise of the operating system's."""

# All of one length, overwritten in place: who reads while another writes sees no half line, and the
# folder itself does not change.
_BYTES = 512


class Heartbeat(NamedTuple):
    """Of one process.

    Attributes:
      process: its index.
      host: of its machine.
      pid: there.
      number: of its heartbeats; it stands still if the process does.
      phase: as in Place.
      step: as in Place.
      seconds: as in Place.
      waits: as in Place.
      own_seconds: as in Place.
    """

    process: int
    host: str
    pid: int
    number: int
    phase: str
    step: int | None
    seconds: float
    waits: bool
    own_seconds: float | None

    @property
    def name(self) -> str:
        """The process, for people."""
        return f"process {self.process} (pid {self.pid} on {self.host})"

    @property
    def where(self) -> str:
        """What it was doing, for people."""
        after = "" if self.step is None else f" after step {self.step}"
        waits = ", waiting for devices" if self.waits else ""
        return f"{self.phase}{after} for {self.seconds:.0f} s{waits}"


def write_heartbeat(path: Path, beat: Heartbeat) -> None:
    """Write it; raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, json.dumps(beat._asdict()).encode().ljust(_BYTES - 1) + b"\n", 0)
    finally:
        os.close(descriptor)


def read_heartbeat(path: Path) -> Heartbeat | None:
    """Read it; None if there is none, or none that is whole."""
    try:
        return Heartbeat(**json.loads(path.read_bytes()[:_BYTES]))
    except (OSError, ValueError, TypeError):
        return None


def place_of(place: Place, process: int, host: str, number: int) -> Heartbeat:
    """Return the heartbeat of this process."""
    return Heartbeat(process, host, os.getpid(), number, **place._asdict())


def suspects(beats: Sequence[Heartbeat]) -> list[Heartbeat]:
    """Return the processes that the others wait for: those at work while others wait, else those that
    are behind.
    """
    if any(beat.waits for beat in beats):
        return [beat for beat in beats if not beat.waits]
    first = max((beat.step or 0 for beat in beats), default=0)
    return [beat for beat in beats if (beat.step or 0) < first]


def stragglers(beats: Sequence[Heartbeat]) -> list[tuple[Heartbeat, float]]:
    """Return the processes whose own work of a step takes more than 1.5 times the median, and the
    median.
    """
    known = [(beat, beat.own_seconds) for beat in beats if beat.own_seconds is not None]
    if len(known) < 2:
        return []
    # Of two processes the median is the mean, which the slow one is part of: the lower one counts.
    middle = sorted(own for _, own in known)[(len(known) - 1) // 2]
    least = max(STRAGGLES * middle, middle + STRAGGLER_SECONDS)
    return [(beat, middle) for beat, own in known if own > least]
