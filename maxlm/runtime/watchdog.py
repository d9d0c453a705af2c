"""End a process whose step takes too long, with the stacks of all its threads."""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path


class Watchdog:
    """End the process with the stacks of all its threads when a step takes longer than `seconds`
    (None: never).

    The only cure for a peer that is alive but asleep: heartbeats still come, and every collective
    waits for ever. For watchers outside, such as a pod's probes, each step also touches the file
    that MAXLM_HEARTBEAT names.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        named = os.environ.get("MAXLM_HEARTBEAT")
        self._heartbeat = Path(named) if named else None

    def arm(self) -> None:
        """Start counting from zero; call once per step."""
        if self._heartbeat is not None:
            self._heartbeat.touch()
        if self._seconds is not None:
            # pytest and notebooks replace sys.stderr by objects without a file descriptor.
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__ or 2)

    def disarm(self) -> None:
        """Stop counting."""
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()
