"""End a process whose phase takes too long, with the stacks of all threads of all processes.

It is the only cure for a peer that is alive but asleep: it still answers, and every collective waits
for it for ever.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from maxlm.events import last_event
from maxlm.process import phases
from maxlm.process.last_words import tell
from maxlm.process.peers import Met, Peers
from maxlm.process.phases import Overdue

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
FAILED = 1
"""`Exit.FAILED`, without loading maxlm.config for it."""

# What looks is a thread of Python's, which runs only if whatever hangs has let go of the
# interpreter's lock. If not, faulthandler's own thread ends the process so much later.
DEAF_SECONDS = 60.0


class Late(NamedTuple):
    """What is said of a phase that is overdue.

    Attributes:
      what: has taken too long, and longer than what.
      cure: what to do about it.
    """

    what: str
    cure: str


def of_a_run(late: Overdue) -> Late:
    """Name the phase of a run, and the setting that it has overrun."""
    place = late.place
    name = "a step" if place.phase == "step" else place.phase
    after = "" if place.step is None else f" after step {place.step}"
    return Late(
        f"{name}{after} has taken longer than {late.setting}={late.limit:g}",
        "If it is slow and does not hang, raise that setting (null: no limit)",
    )


class Watchdog:
    """Looks whether the phase is overdue, and ends the process if so."""

    def __init__(
        self,
        overdue: Callable[[], Overdue | None] = phases.overdue,
        leave: Callable[[int], None] = os._exit,
        describe: Callable[[Overdue], Late] = of_a_run,
    ) -> None:
        self._overdue, self._leave, self._describe = overdue, leave, describe

    def check(self) -> None:
        """End the process if its phase is overdue."""
        late = self._overdue()
        if late is None:
            return
        faulthandler.cancel_dump_traceback_later()
        peers = Met.peers
        tell(lambda: self._explain(late, peers))
        if peers is not None:
            tell(peers.ask_for_stacks, seconds=DEAF_SECONDS)
            tell(lambda: self._name(peers.explain()), seconds=2 * peers.period + DEAF_SECONDS)
        self._leave(FAILED)

    def _explain(self, late: Overdue, peers: Peers | None) -> None:
        place, (what, cure) = late.place, self._describe(late)
        log.error(
            "%s: ended, with the stacks of all threads%s. %s",
            what,
            "" if peers is None else f", of all processes in {peers.stacks}",
            cure,
            extra=last_event(
                "timeout",
                step=place.step,
                phase=place.phase,
                limit_seconds=late.limit,
            ),
        )
        faulthandler.dump_traceback(file=sys.__stderr__ or 2)

    def _name(self, findings: list[str]) -> None:
        for finding in findings:
            log.error("%s", finding)


@contextmanager
def watching(
    limits: Mapping[str, float | None], *, describe: Callable[[Overdue], Late] = of_a_run
) -> Iterator[None]:
    """Watch the phases of this process until the end of the block.

    Args:
      limits: seconds by phase, None for ever.
      describe: says what has taken too long.
    """
    phases.limit(limits)
    watchdog, done = Watchdog(describe=describe), threading.Event()

    def look() -> None:
        while not done.wait(CHECK_SECONDS):
            _arm(phases.remaining())
            watchdog.check()

    thread = threading.Thread(target=look, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()
        phases.limit({})


def _arm(remaining: float | None) -> None:
    if remaining is None:
        faulthandler.cancel_dump_traceback_later()
    else:
        seconds = max(remaining, 0.0) + DEAF_SECONDS
        # pytest and notebooks replace sys.stderr by objects without a file descriptor.
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
