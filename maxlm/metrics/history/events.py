"""RUN_DIR/events.jsonl: what happened to a run, from lines of the log that `maxlm.events` marks."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from maxlm.events import ATTRIBUTE, Event
from maxlm.metrics.history.journal import Journal, read_journal

FILE = "events.jsonl"
ECHO_SECONDS = 60.0
"""What another process says within this time of the first one saying it is the same event."""


class Happened(NamedTuple):
    """An event as it is kept.

    Attributes:
      time: the clock, in seconds.
      kind: as in `maxlm.events.Event`, as are `step` and `values`.
      step: steps done.
      process: index of the process that says so.
      level: INFO, WARNING or ERROR.
      text: the line of the log.
      values: figures and names.
    """

    time: float
    kind: str
    step: int | None
    process: int
    level: str
    text: str
    values: Mapping[str, Any]


class EventHandler(logging.Handler):
    """Keep events: in memory until the run's folder is there, then as lines of its file.

    Nothing is raised: a log must not end a run.
    """

    def __init__(self) -> None:
        super().__init__()
        self._process = 0
        self._path: Path | None = None
        self._journal: Journal | None = None
        self._waiting: list[Happened] = []
        self._untold: deque[Happened] = deque(maxlen=1000)
        self.show_last: Callable[[Happened], None] | None = None
        """Shows what a process says when it ends at once, in whichever thread says so."""
        self._complained = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line of the log if it is an event."""
        event: Event | None = getattr(record, ATTRIBUTE, None)
        if event is not None:
            text, level = record.getMessage(), record.levelname
            place = event.kind, event.step, self._process, level, text
            happened = Happened(record.created, *place, event.values)
            self._keep(happened)
            if event.is_last and self.show_last is not None:
                with contextlib.suppress(OSError):
                    self.show_last(happened)

    def note(
        self, kind: str, text: str, *, step: int | None = None, level: str = "INFO", **values: Any
    ) -> None:
        """Keep an event that is no line of the log, as the terminal shows it in another way."""
        with self.lock:  # type: ignore[union-attr]
            self._keep(Happened(time.time(), kind, step, self._process, level, text, values))

    def open(self, run_dir: Path, *, process: int) -> None:
        """Write what there was, and what will be, into the run's folder.

        Processes but the first have files of their own, made when there is something to tell:
        what the first one says too, all that is below a warning, they leave to it.
        """
        with self.lock:  # type: ignore[union-attr]
            self._process, self._path = process, path_of(run_dir, process)
            waiting, self._waiting = self._waiting, []
            for happened in waiting:
                self._keep(happened._replace(process=process))

    def untold(self) -> list[Happened]:
        """Return the events since the last call, for whoever shows them elsewhere."""
        with self.lock:  # type: ignore[union-attr]
            found = list(self._untold)
            self._untold.clear()
            return found

    def close(self) -> None:
        """Close the file; what comes later is not kept."""
        with self.lock:  # type: ignore[union-attr]
            if self._journal is not None:
                self._journal.close()
            self._journal, self._path = None, None
            self._waiting.clear()
        super().close()

    def _keep(self, happened: Happened) -> None:
        if self._path is None:
            self._waiting.append(happened)
            return
        if self._process > 0 and happened.level in ("DEBUG", "INFO"):
            return
        self._untold.append(happened)
        written = datetime.fromtimestamp(happened.time, UTC).isoformat(timespec="milliseconds")
        line = happened._asdict() | {"time": written.replace("+00:00", "Z")}
        try:
            self._journal = self._journal or Journal(self._path)
            self._journal.append(line)
        except OSError as error:
            if self._journal is not None:  # opened anew, it mends the line that was cut short
                self._journal.close()
                self._journal = None
            if not self._complained:
                self._complained = True
                why = error.strerror or error
                sys.stderr.write(f"maxlm: events are not kept: {self._path}: {why}\n")


def path_of(run_dir: Path, process: int) -> Path:
    """Return the file of a process."""
    return run_dir / (FILE if process == 0 else f"events-{process}.jsonl")


def read_events(run_dir: Path) -> tuple[list[Happened], int]:
    """Return all processes' events in the order of their time, and how many lines are damaged.

    What several processes said is one event.

    Raises:
      OSError: a file cannot be read.
    """
    others = [path for path in run_dir.glob("events-*.jsonl") if re.search(r"-\d+\.", path.name)]
    found, damaged = list[Happened](), 0
    for path in (run_dir / FILE, *sorted(others)):
        lines = read_journal(path)
        events = [_event(record) for record in lines.records]
        found += [event for event in events if event is not None]
        damaged += lines.damaged + events.count(None)
    return _without_echoes(sorted(found, key=lambda event: event.time)), damaged


def _event(record: Mapping[str, Any]) -> Happened | None:
    try:
        moment = datetime.fromisoformat(record["time"]).timestamp()
        step, values = record["step"], record["values"]
        texts = [record[name] for name in ("kind", "level", "text")]
        process = record["process"]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    whole = all(isinstance(number, int) for number in (process, 0 if step is None else step))
    if not whole or not all(isinstance(text, str) for text in texts):
        return None
    if not isinstance(values, dict):
        return None
    kind, level, text = texts
    return Happened(moment, kind, step, process, level, text, values)


def _without_echoes(events: list[Happened]) -> list[Happened]:
    kept: list[Happened] = []
    last: dict[tuple[str, int | None, str], Happened] = {}
    for event in events:
        said = event.kind, event.step, event.text
        before = last.get(said)
        if before is None or (
            before.process == event.process or event.time - before.time > ECHO_SECONDS
        ):
            kept.append(event)
            last[said] = event
    return kept
