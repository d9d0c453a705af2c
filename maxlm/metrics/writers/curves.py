"""RUN_DIR/tensorboard: event files, which a restart hides from its step on.

They are written through tensorboardX's `EventsWriter`, not its `SummaryWriter`: that one hands
events to a thread through a bounded queue, so a full disk ends the thread and training then waits
for the queue for ever.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from maxlm.config.reading.paths import flatten
from maxlm.metrics import catalog


class Curves:
    """Event files for TensorBoard: everything over steps, and losses over FLOPs."""

    def __init__(self, folder: Path, resume_step: int, flops: float):
        self._by_step = EventFile(folder, resume_step + 1 if resume_step else 0)
        spent = flops if resume_step else None
        self._by_flops = [
            _FlopsCurves(folder / group, group, spent) for group in catalog.FLOPS_CURVES
        ]
        self._session_end: list[Summary] = []

    def write(self, step: int, values: Mapping[str, float | str], flops: float | None) -> None:
        """Add points of a step, and of its losses over the FLOPs spent, where they are known."""
        self._by_step.write(step, [scalar_or_text(name, value) for name, value in values.items()])
        losses = {name: float(value) for name, value in values.items() if catalog.is_loss(name)}
        if losses and flops is not None:
            next(curves for curves in self._by_flops if curves.place(flops) < 2**63).write(
                flops, losses
            )

    def text(self, tag: str, text: str, step: int) -> None:
        """Show text exactly as it is."""
        self._by_step.write(step, [scalar_or_text(tag, text)])

    def charts(self, charts: Mapping[str, Sequence[str]]) -> None:
        """Draw several curves in one chart, by its title."""
        lines = {title: ["Multiline", list(tags)] for title, tags in charts.items()}
        self._by_step.write(0, [summary.custom_scalars({"maxlm": lines})])

    def hparams(self, config: Mapping[str, Any], metrics: Iterable[str]) -> None:
        """Enter the run with its settings, beside the last values of some curves."""
        settings = {
            path: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for path, value in flatten(config).items()
        }
        experiment, session_start, session_end = summary.hparams(settings, dict.fromkeys(metrics))
        self._by_step.write(0, [experiment, session_start])
        self._session_end = [session_end]

    def close(self) -> None:
        """Close the files."""
        self._by_step.write(0, self._session_end)
        self._by_step.close()
        for curves in self._by_flops:
            curves.close()


def add_text(folder: Path, tag: str, text: str, step: int) -> None:
    """Show a text by a file of its own, which hides nothing: for another thread than the one that
    writes the others.
    """
    file = EventFile(folder, None)
    file.write(step, [scalar_or_text(tag, text)])
    file.close()


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

    def __init__(self, folder: Path, first_hidden_step: int | None):
        """`first_hidden_step`: from which on earlier files are hidden; None: nothing is."""
        folder.mkdir(parents=True, exist_ok=True)
        # tensorboardX names files by the second; two starts within one must not overwrite each
        # other.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        # TensorBoard takes the first START of a folder for no restart: a fresh run needs one too,
        # or the first resume would hide nothing.
        if first_hidden_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=first_hidden_step, session_log=start))

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
