"""The inside of a task's process: its timer, its share of memory, and the place where it is.

Both limits hold without the help of the code that exceeds them: the kernel ends the process when
the timer runs out, and refuses it more memory. The place is in memory that the process shares with
the one that watches it.
"""

from __future__ import annotations

import mmap
import re
import resource
import signal
from pathlib import Path

from data_pipeline.engine.isolation.limits import NOWHERE, Limits

PLACE_BYTES = 8
LOADING_SECONDS = 120.0
"""More time at the first document of a task: a step may load a model there, which takes longest on
a busy machine and is no fault of the document's.
"""


class Watch:
    """Says where a task is, and starts the timer anew at each document."""

    def __init__(self, limits: Limits, place: mmap.mmap | None = None):
        self.limits, self._place = limits, place
        self._more = LOADING_SECONDS
        self._say(NOWHERE)

    def at(self, place: int) -> None:
        """Say that the task goes on to the document of this place."""
        self._say(place)
        if self._place is not None:
            signal.setitimer(signal.ITIMER_REAL, self.limits.document_seconds + self._more)
            self._more = 0.0

    def at_none(self) -> None:
        """Say that the task is done with its documents."""
        self._say(NOWHERE)
        if self._place is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _say(self, place: int) -> None:
        if self._place is not None:
            self._place[:PLACE_BYTES] = place.to_bytes(PLACE_BYTES, "little", signed=True)


def limit_memory(more_bytes: int) -> None:
    """Let this process take so many bytes beyond what it has.

    Private writable memory counts, used or not; files that are mapped for reading do not.
    """
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(found[1]) * 1024 + more_bytes, hard))


def peak_bytes() -> int:
    """Return the most memory that this process has held.

    On Linux getrusage begins with what the process had that started this one.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
