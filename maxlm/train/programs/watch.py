"""What is compiled while a run goes on: how often, for how long, and what comes late."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from jax import monitoring

from maxlm.events import event as marked

log = logging.getLogger(__name__)

COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's name for one program's compilation, or its reading from the cache of compiled programs."""
CACHE_HIT = "/jax/compilation_cache/cache_hits"
LEAST_SECONDS = 1.0
"""Of a late compilation that is told: programs that compile faster are too small to matter."""


class CompileWatch:
    """Count compilations. A context manager.

    A program that is compiled when everything has run once takes memory beside the training step's,
    which may be too much, and time of all hosts: an event, and a warning if it is there already.

    Attributes:
      counts: compilations by the name of their program.
      missed: those of them that no folder of compiled programs had.
      seconds: spent in all of them, those in other threads too.
    """

    def __init__(self, late: Callable[[], bool]) -> None:
        """`late` says whether everything that runs now has run before."""
        self._late = late
        self.counts: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._lock, self._thread = threading.Lock(), threading.local()

    @property
    def seconds(self) -> float:
        """Spent in all compilations, those in other threads too."""
        return sum(self._seconds.values())

    def longest(self, most: int = 8) -> dict[str, dict[str, float]]:
        """Return how often the programs that took longest were compiled, and for how long."""
        names = sorted(self._seconds, key=lambda name: -self._seconds[name])[:most]
        return {
            name: {"times": self.counts[name], "seconds": round(self._seconds[name], 3)}
            for name in names
        }

    def __enter__(self) -> Self:
        monitoring.register_event_duration_secs_listener(self._on_duration)
        monitoring.register_event_listener(self._on_event)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        monitoring.unregister_event_duration_listener(self._on_duration)
        monitoring.unregister_event_listener(self._on_event)

    def _on_event(self, event: str, **_: Any) -> None:
        if event == CACHE_HIT:  # told before the end of the compilation that it is of
            self._thread.hit = True

    def _on_duration(self, event: str, duration_secs: float, **more: Any) -> None:
        if event != COMPILED:
            return
        program = str(more.get("fun_name", "a program"))
        hit, self._thread.hit = getattr(self._thread, "hit", False), False
        with self._lock:
            self.counts[program] += 1
            self.missed[program] += not hit
            self._seconds[program] = self._seconds.get(program, 0.0) + duration_secs
            times = self.counts[program]
        if duration_secs >= LEAST_SECONDS and self._late():
            log.log(
                logging.WARNING if times > 1 else logging.INFO,
                "%s was compiled in %.1f s while training went on (compilation %d of this name); "
                "it takes memory beside the training step, and time",
                program,
                duration_secs,
                times,
                extra=marked("late_compile", program=program, seconds=duration_secs, times=times),
            )
