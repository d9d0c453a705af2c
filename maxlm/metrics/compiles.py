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
CACHE_ASKED = "/jax/compilation_cache/compile_requests_use_cache"
CACHE_HITS = "/jax/compilation_cache/cache_hits"
LEAST_SECONDS = 0.1
"""Of a late compilation that is told: programs that compile faster are too small to matter."""


class CompileWatch:
    """Count compilations. A context manager.

    A program that is compiled when everything has run once takes memory beside the training step's,
    which may be too much, and time of all hosts: an event, and a warning if it is there already.

    Attributes:
      counts: compilations by the name of their program.
      seconds: spent in them, in total; of those in other threads too.
      asked: programs that the cache of compiled programs was asked for.
      hits: those that it had.
    """

    def __init__(self, late: Callable[[], bool]) -> None:
        """`late` says whether everything that runs now has run before."""
        self._late = late
        self.counts: Counter[str] = Counter()
        self.seconds, self.asked, self.hits = 0.0, 0, 0
        self._lock = threading.Lock()

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
        with self._lock:
            self.asked += event == CACHE_ASKED
            self.hits += event == CACHE_HITS

    def _on_duration(self, event: str, duration_secs: float, **more: Any) -> None:
        if event != COMPILED:
            return
        program = str(more.get("fun_name", "a program"))
        with self._lock:
            self.counts[program] += 1
            self.seconds += duration_secs
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
