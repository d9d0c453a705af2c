"""Where metrics are written: RUN_DIR/metrics.jsonl, the record, and RUN_DIR/tensorboard, the
curves.

Event files are written through tensorboardX's `EventsWriter`, not its `SummaryWriter`: that one
hands events to a thread through a bounded queue, so a full disk ends the thread and training then
waits for the queue for ever.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from maxlm.config.errors import UserError, make_possible
from maxlm.config.reading.paths import flatten
from maxlm.metrics import catalog

_log = logging.getLogger(__name__)


class MetricsWriter:
    """Write a run's metrics; on resume, go on from the checkpoint's step and hide what was logged
    after it.

    A run has one, in its first process.
    """

    def __init__(self, run_dir: str | Path, *, tensorboard: bool, resume_step: int):
        """Open the files.

        Args:
          run_dir: the run directory; it exists.
          tensorboard: whether to write event files too.
          resume_step: steps already done, whose metrics are kept; 0 starts anew.

        Raises:
          UserError: the files cannot be written.
        """
        self._run_dir = Path(run_dir)
        self._curves: _Curves | None = None
        with _writing(self._run_dir):
            self._lines = _Lines(self._run_dir / "metrics.jsonl", resume_step)
            if tensorboard:
                flops = self._lines.latest.get("train/flops") or 0.0
                self._curves = _Curves(self._run_dir / "tensorboard", resume_step, flops)

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Log metrics of a step; several calls for one step make one line.

        Args:
          step: never less than in the call before.
          values: by their names in the catalogue. With `train/flops` among them, losses are drawn
            over FLOPs too.

        Raises:
          KeyError: the catalogue has no such metric.
          UserError: the disk is full or not writable.
        """
        for name in values:
            catalog.find(name)
        with _writing(self._run_dir):
            self._lines.write(step, values)
            if self._curves is not None:
                self._curves.write(step, values, self._lines.record.get("train/flops"))

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Show text in TensorBoard exactly as it is, whatever characters it contains."""
        if self._curves is not None:
            with _writing(self._run_dir):
                self._curves.text(tag, text, step)

    def hparams(self, config: Mapping[str, Any], metrics: Iterable[str]) -> None:
        """Enter the run in TensorBoard's HPARAMS tab.

        Args:
          config: nested settings, shown as `section.key`.
          metrics: names of the curves whose last values stand beside them.
        """
        if self._curves is not None:
            with _writing(self._run_dir):
                self._curves.hparams(config, metrics)

    def charts(self, charts: Mapping[str, Sequence[str]]) -> None:
        """Draw several curves in one chart of TensorBoard's CUSTOM SCALARS tab.

        Args:
          charts: names of the curves by the title of their chart.
        """
        if self._curves is not None:
            with _writing(self._run_dir):
                self._curves.charts(charts)

    def close(self) -> None:
        """Close the files; everything written is on disk then."""
        with _writing(self._run_dir):
            self._lines.close()
            if self._curves is not None:
                self._curves.close()


class _Lines:
    """metrics.jsonl: one JSON object per logged step, steps ascending.

    A loss has its bits beside it: "train/loss_hex" is float.hex. JSON has no nan and no infinity,
    so they become null; the hex form still says which it was.

    Attributes:
      record: the last line.
      latest: the last value of every metric.
    """

    def __init__(self, path: Path, resume_step: int):
        self.record: dict[str, Any] = {}
        self.latest: dict[str, Any] = {}
        self._line_start = 0
        temporary = path.with_name(path.name + ".tmp")
        for place in (path, temporary):
            if place.exists() and not place.is_file():  # a pipe would be waited for
                raise FileExistsError(errno.EEXIST, "is not a file", str(place))
        with temporary.open("wb") as file:
            for record in _records(path, resume_step):
                self._line_start = file.tell()
                file.write(_line(record))
                self.record = record
                self.latest.update(record)
        temporary.replace(path)  # a kill leaves the old file or the new one
        self._file = path.open("r+b")

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Write the step's line, or add to it."""
        last_step = self.record.get("step", -1)
        assert step >= last_step, f"step {step} logged after step {last_step}"
        if step > last_step:
            self.record = {"step": step}
            self._line_start = self._file.seek(0, os.SEEK_END)
        for name, value in values.items():
            self.record[name] = _plain(value)
            if catalog.is_loss(name):
                self.record[f"{name}_hex"] = float(value).hex()
        self.latest.update(self.record)
        self._file.seek(self._line_start)
        self._file.write(_line(self.record))
        self._file.truncate()
        self._file.flush()

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def _records(path: Path, resume_step: int) -> Iterator[dict[str, Any]]:
    """Yield the records up to the step resumed from; a line torn by a kill is left out."""
    if resume_step == 0 or not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except ValueError:
                _log.warning("%s:%d is not a whole line and was dropped", path, number)
                continue
            if record["step"] <= resume_step:
                yield record


def _plain(value: float | str) -> float | str | None:
    if isinstance(value, str | int):
        return value
    return float(value) if math.isfinite(value) else None


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


class _Curves:
    """Event files for TensorBoard: everything over steps, and losses over FLOPs."""

    def __init__(self, folder: Path, resume_step: int, flops: float):
        self._by_step = EventFile(folder, resume_step + 1 if resume_step else 0)
        spent = flops if resume_step else None
        self._by_flops = [
            _FlopsCurves(folder / group, group, spent) for group in catalog.FLOPS_CURVES
        ]
        self._session_end: list[Summary] = []

    def write(self, step: int, values: Mapping[str, float | str], flops: float | None) -> None:
        self._by_step.write(step, [scalar_or_text(name, value) for name, value in values.items()])
        losses = {name: float(value) for name, value in values.items() if catalog.is_loss(name)}
        if losses and flops is not None:
            next(curves for curves in self._by_flops if curves.place(flops) < 2**63).write(
                flops, losses
            )

    def text(self, tag: str, text: str, step: int) -> None:
        self._by_step.write(step, [scalar_or_text(tag, text)])

    def charts(self, charts: Mapping[str, Sequence[str]]) -> None:
        lines = {title: ["Multiline", list(tags)] for title, tags in charts.items()}
        self._by_step.write(0, [summary.custom_scalars({"maxlm": lines})])

    def hparams(self, config: Mapping[str, Any], metrics: Iterable[str]) -> None:
        settings = {
            path: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for path, value in flatten(config).items()
        }
        experiment, session_start, session_end = summary.hparams(settings, dict.fromkeys(metrics))
        self._by_step.write(0, [experiment, session_start])
        self._session_end = [session_end]

    def close(self) -> None:
        self._by_step.write(0, self._session_end)
        self._by_step.close()
        for curves in self._by_flops:
            curves.close()


class _FlopsCurves:
    """Losses over FLOPs, which TensorBoard shows as a run of its own: its steps are whole numbers
    of a unit of FLOPs.

    They need a folder of their own, as a restart hides every event of its folder from one step on.
    The folder is made for its first point.
    """

    def __init__(self, folder: Path, group: str, spent: float | None):
        """`spent`: FLOPs at the checkpoint that is resumed from; None for a fresh run."""
        self._folder, self._group = folder, group
        self._first = 0 if spent is None else self.place(spent) + 1
        self._last: dict[str, int] = {}
        self._file: EventFile | None = None

    def place(self, flops: float) -> int:
        """Return where a point lies on the horizontal axis."""
        return int(flops / catalog.FLOPS_CURVES[self._group])

    def write(self, flops: float, losses: Mapping[str, float]) -> None:
        """Add a point to the curve of each loss that has none at this place yet."""
        place = self.place(flops)
        new = [name for name in losses if place > self._last.get(name, self._first - 1)]
        if new and self._file is None:
            self._file = EventFile(self._folder, self._first)
        if new and self._file is not None:
            self._file.write(
                place,
                [
                    scalar_or_text(catalog.flops_curve(name, self._group), losses[name])
                    for name in new
                ],
            )
            self._last |= dict.fromkeys(new, place)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class EventFile:
    """One event file, written at once and in order."""

    def __init__(self, folder: Path, first_hidden_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # tensorboardX names files by the second; two starts within one must not overwrite each
        # other.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        # TensorBoard takes the first START of a folder for no restart: a fresh run needs one too,
        # or the first resume would hide nothing.
        self._write(Event(step=first_hidden_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, summaries: Sequence[Summary]) -> None:
        """Write what belongs to a step."""
        values = [value for item in summaries for value in item.value]
        if values:
            self._write(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
        self._writer.flush()  # to the disk: a killed run must not lack curves up to its checkpoint


def scalar_or_text(tag: str, value: float | str) -> Summary:
    """Return a point of a curve, or a text that is shown exactly as it is."""
    if isinstance(value, str):
        return summary.text(tag, _verbatim(value))
    # Not through summary.scalar, which logs a line of its own for every nan; TensorBoard marks such
    # a point.
    return Summary(value=[Summary.Value(tag=tag, simple_value=value)])


def _verbatim(text: str) -> str:
    """Make text a Markdown code block by indenting it, which unlike a fence no content can end."""
    text = text.encode("utf-8", errors="replace").decode()
    return "\n".join("    " + line for line in text.split("\n"))


@contextlib.contextmanager
def _writing(run_dir: Path) -> Iterator[None]:
    """Tell the user where and why a write failed, and the cure."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or run_dir}: cannot write metrics: {error.strerror or error}; {make_possible(error)}, "
            "then start the same command again to resume"
        ) from error
