"""The memory of a run: its events and its time, kept in its folder from the first line on."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from maxlm.config.errors import RunFailedError, UserError, make_possible
from maxlm.metrics.history.events import EventHandler, Happened, read_events
from maxlm.metrics.history.timesheet import TimeSheet

PACKAGE = "maxlm"
MOST_SIGNS = 4000
"""Of an error's text and of its traceback, what is kept."""

_BEGINNINGS = ("start", "resume")
_ENDS = ("end", "failed")


class History:
    """Catch the events of a process and measure its time. A context manager.

    What happens before `open` is kept in memory, and lost if there never is a folder.
    """

    def __init__(self, age_seconds: float = 0.0):
        """Begin; `age_seconds` is how long the process has been there."""
        self.events, self.time = EventHandler(), TimeSheet(age_seconds)
        self._before: list[Happened] = []
        self._level = logging.NOTSET
        self._at_end = contextlib.ExitStack()

    def __enter__(self) -> Self:
        # Processes but the first show errors alone, by the level of the root logger: their events
        # are caught all the same, as the level of what is nearer counts.
        package = logging.getLogger(PACKAGE)
        self._level = package.level
        package.setLevel(logging.INFO)
        logging.getLogger().addHandler(self.events)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._note_failure(error)
        try:
            self._at_end.close()
        finally:
            self.time.close()
            logging.getLogger().removeHandler(self.events)
            logging.getLogger(PACKAGE).setLevel(self._level)
            self.events.close()

    def at_end(self, act: Callable[[], None]) -> None:
        """Have something done when all is noted, what ended the process too."""
        self._at_end.callback(act)

    def open(self, run_dir: Path, *, process: int) -> None:
        """Go on with the history of a run, whose folder this process may write to.

        Raises:
          UserError: it cannot be read or written.
        """
        try:
            if process == 0:
                self.time.open(run_dir)
                known, _ = read_events(run_dir)
                self._before = [event for event in known if event.process == 0]
                self._note_sudden_end()
        except OSError as error:
            where = error.filename or run_dir
            raise UserError(
                f"{where}: cannot write the run's history: {error.strerror or error}; "
                f"{make_possible(error)}, or move that file away"
            ) from error
        self.events.open(run_dir, process=process)

    def last(self, kind: str) -> Happened | None:
        """Return the last event of a kind from the starts before; None if there is none, and in all
        processes but the first.
        """
        return next((event for event in reversed(self._before) if event.kind == kind), None)

    def _note_sudden_end(self) -> None:
        """Say so if the process before this one ended without a word."""
        own = self._before
        last = next((event for event in reversed(own) if event.kind in _BEGINNINGS + _ENDS), None)
        if last is None or last.kind in _ENDS:
            return
        seconds = max(time.time() - own[-1].time, 0.0)
        self.events.note(
            "sudden_end",
            "the process before this one ended without a word: killed, crashed or cut off from power",
            step=own[-1].step,
            level="WARNING",
            seconds_since_its_last_event=round(seconds, 3),
        )

    def _note_failure(self, error: BaseException) -> None:
        values: dict[str, Any] = {"error": type(error).__name__}
        text = str(error)[:MOST_SIGNS]
        if not isinstance(error, UserError | RunFailedError):
            text = f"{type(error).__name__}: {text}"
            lines = traceback.format_exception(type(error), error, error.__traceback__)
            values["traceback"] = "".join(lines)[-MOST_SIGNS:]
        self.events.note("failed", text, step=self.time.step, level="ERROR", **values)
