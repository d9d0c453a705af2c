"""What a run has left in its folder, read as it is: going on, dead, or with damaged lines."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from maxlm.config.errors import UserError
from maxlm.files import read_regular
from maxlm.metrics.history import events, timesheet
from maxlm.metrics.history.events import Happened
from maxlm.metrics.history.goodput import Goodput, Span, goodput_of
from maxlm.metrics.history.journal import read_journal
from maxlm.metrics.writers import lines

BEGINNINGS = ("start", "resume")
ENDS = ("end", "failed")


class Saved(NamedTuple):
    """A folder of a checkpoint.

    Attributes:
      name: of the folder.
      num_bytes: of its files.
      seconds: the clock when it was written.
      record: what it says of itself; empty where that cannot be read.
    """

    name: str
    num_bytes: int
    seconds: float
    record: Mapping[str, Any]


class RunRecord(NamedTuple):
    """A run, from its files alone.

    Attributes:
      folder: of the run.
      metrics: a mapping of names to values for each logged step, steps ascending.
      events: what happened, of all processes, in order.
      spans: what time went into, in order.
      checkpoints: folders of checkpoints, damaged ones too, by name.
      config: the settings as YAML; empty where there are none.
      damaged: how many lines of a file are none, by its name.
    """

    folder: Path
    metrics: list[dict[str, Any]]
    events: list[Happened]
    spans: list[Span]
    checkpoints: list[Saved]
    config: str
    damaged: dict[str, int]

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read the folder of a run; nothing in it is changed.

        Raises:
          UserError: it is no folder, or no run's, or cannot be read.
        """
        _refuse_what_is_no_run(folder)
        try:
            metrics, bad_metrics = lines.sort_out(folder / lines.FILE)
            happened, bad_events = events.read_events(folder)
            times = read_journal(folder / timesheet.FILE)
            spans = [Span.read(record) for record in times.records]
            saved = _checkpoints(folder / "checkpoints")
            config = _config(folder / "config.yaml", saved)
        except OSError as error:
            raise UserError(
                f"{error.filename or folder} cannot be read: {error.strerror or error}"
            ) from error
        whole = [span for span in spans if span is not None]
        bad_spans = times.damaged + len(spans) - len(whole)
        counts = {lines.FILE: len(bad_metrics), events.FILE: bad_events, timesheet.FILE: bad_spans}
        damaged = {name: count for name, count in counts.items() if count}
        return cls(folder, metrics, happened, whole, saved, config, damaged)

    @property
    def goodput(self) -> Goodput:
        """What the time of the run went into."""
        return goodput_of(self.spans)

    @property
    def step(self) -> int:
        """Steps done, as far as files say."""
        steps = [self.metrics[-1]["step"]] if self.metrics else []
        steps += [event.step for event in self.events if event.step is not None]
        return max([0, *steps])

    @property
    def last_seconds(self) -> float | None:
        """The clock at the last line; None where no line has a time."""
        times = [event.time for event in self.events[-1:]] + [span.time for span in self.spans[-1:]]
        return max(times, default=None)

    @property
    def last_end(self) -> Happened | None:
        """How the last start ended; None where it goes on, or ended without a word."""
        own = [event for event in self.events if event.kind in BEGINNINGS + ENDS]
        return own[-1] if own and own[-1].kind in ENDS else None

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Return (steps, values) of a metric; what was not finite is nan."""
        points = [
            (record["step"], record[name]) for record in self.metrics if record.get(name, "") != ""
        ]
        steps = [step for step, _ in points]
        numbers = [value if isinstance(value, int | float) else math.nan for _, value in points]
        return steps, [float(number) for number in numbers]

    def names(self, pattern: str) -> list[str]:
        """Return the names of metrics that match a regular expression, in the order of their
        first line.
        """
        found = dict.fromkeys(name for record in self.metrics for name in record)
        return [name for name in found if re.fullmatch(pattern, name)]


def _refuse_what_is_no_run(folder: Path) -> None:
    if not folder.is_dir():
        missing = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {missing}; give the run_dir of a run")
    marks = (lines.FILE, events.FILE, timesheet.FILE)
    if not any((folder / name).exists() for name in marks):
        raise UserError(
            f"{folder} is no run: it has none of {', '.join(marks)}; give the run_dir of a run that has begun"
        )


def _checkpoints(folder: Path) -> list[Saved]:
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and re.fullmatch(r"\d+(\.damaged.*)?", path.name):
            files = [file for file in path.rglob("*") if file.is_file()]
            size = sum(file.stat().st_size for file in files)
            found.append(Saved(path.name, size, path.stat().st_mtime, _record_of(path)))
    return found


def _record_of(path: Path) -> Mapping[str, Any]:
    file = path / "record" / "record.json"
    try:
        record = json.loads(read_regular(file))["record"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _config(path: Path, saved: list[Saved]) -> str:
    if path.exists():
        return read_regular(path).decode(errors="replace")
    kept = [one.record["config"] for one in saved if "config" in one.record]
    return yaml.safe_dump(kept[-1], sort_keys=False) if kept else ""
