"""RUN_DIR/metrics.jsonl, the record of a run: one JSON object per logged step; written by the run,
read by everybody.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from maxlm.events import event
from maxlm.files import open_regular
from maxlm.metrics import catalog

log = logging.getLogger(__name__)

FILE = "metrics.jsonl"
ASIDE = "metrics.jsonl.aside"
"""Lines that were taken out of it: those of steps that were done again, and what is no line of
metrics. A line before each lot says when and why."""


LARGEST = 1e300
"""Whole numbers below it have a float beside them."""


class Line(NamedTuple):
    """A line of the file.

    Attributes:
      number: from 1.
      record: what it says, None if it is no line of metrics.
      text: its bytes.
    """

    number: int
    record: dict[str, Any] | None
    text: bytes


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a metrics.jsonl; none where there is no file.

    A line of metrics is a JSON object with a step above that of the line before, and numbers and
    texts as JSON can write them. Of two whose steps do not ascend, the first is wrong if the second
    follows the line before it: one damaged step must not put all lines after it in the wrong.

    Raises:
      OSError: it cannot be read, or is no regular file.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    held: list[Line] = []  # the last line of metrics, and what is none after it
    before = -1  # the step of the line of metrics before that
    with file:
        for number, text in enumerate(file, 1):
            line = Line(number, _parse(text), text)
            if line.record is not None and held and (last := held[0].record) is not None:
                step = line.record["step"]
                if before < step < last["step"]:
                    held[0] = held[0]._replace(record=None)
                elif step <= last["step"]:
                    line = line._replace(record=None)
                else:
                    before = last["step"]
            if line.record is not None:
                yield from held
                held = []
            held.append(line)
    yield from held


def sort_out(path: Path) -> tuple[list[dict[str, Any]], list[Line]]:
    """Return the records of a metrics.jsonl in order, and what is no line of metrics.

    The last line of a run that goes on may be half written: it is in neither.

    Raises:
      OSError: it cannot be read, or is no regular file.
    """
    lines = list(read_lines(path))
    wrong = [line for line in lines if line.record is None]
    if wrong and wrong[-1] is lines[-1] and not lines[-1].text.endswith(b"\n"):
        wrong.pop()
    return [line.record for line in lines if line.record is not None], wrong


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl in order, and warn of what is no line of metrics; see
    `sort_out`.
    """
    records, wrong = sort_out(path)
    if wrong:
        log.warning("%s: %s left out", path, _named(wrong))
    return records


def _named(lines: list[Line]) -> str:
    numbers = ", ".join(str(line.number) for line in lines[:5])
    more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
    what = "line" if len(lines) == 1 else "lines"
    return f"{what} {numbers}{more}, no {'line' if len(lines) == 1 else 'lines'} of metrics,"


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    step = record.get("step")
    whole = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**63
    return record if whole and all(map(_is_value, record.values())) else None


def _is_value(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)  # what JSON has no word for, Python writes and reads
    if isinstance(value, int):
        return abs(value) < LARGEST
    return value is None or isinstance(value, str)


class MetricsLines:
    """Write metrics.jsonl, steps ascending.

    A loss has its bits beside it: "train/loss_hex" is float.hex. JSON has no nan and no infinity,
    so they become null; the hex form still says which it was.

    Attributes:
      record: the last line.
      flops: the last `train/flops`.
      line_flops: that of the last line, None where it has none.
    """

    def __init__(self, path: Path, *, resume_step: int, log_every: int):
        """Open the file for what comes after a step.

        What it loses by that is kept: the whole file under another name at step 0, else in `ASIDE`
        beside it. The first new line says which step the run went on from, and where lines are
        missing before it.
        """
        self.record: dict[str, Any] = {}
        self.flops = 0.0
        self.line_flops: float | None = None
        self._line_start = 0
        self._mark: dict[str, int] = {}
        temporary = path.with_name(path.name + ".tmp")
        for place in (path, temporary, path.with_name(ASIDE)):
            if place.exists() and not place.is_file():  # a pipe would be waited for
                raise FileExistsError(errno.EEXIST, "is not a file", str(place))
        if resume_step == 0:
            _keep_whole(path)
        with temporary.open("wb") as file:
            self._copy(path, file, resume_step)
        temporary.replace(path)  # a kill leaves the old file or the new one
        if resume_step:
            self._note(path, resume_step, log_every)
        self._file = path.open("r+b")

    def _copy(self, path: Path, file: BinaryIO, resume_step: int) -> None:
        """Copy the lines up to the step resumed from, and put the others aside."""
        wrong, after = list[Line](), list[Line]()
        for line in read_lines(path):
            if line.record is None:
                wrong.append(line)
            elif line.record["step"] > resume_step:
                after.append(line)
            else:
                self._line_start = file.tell()
                file.write(_line(line.record))
                self._take_up(line.record)
        aside = path.with_name(ASIDE)
        if wrong:
            log.warning("%s: %s put aside in %s", path, _named(wrong), aside)
            _put_aside(aside, "no line of metrics", wrong)
        if after:
            log.info("%s: steps after %d are in %s", path, resume_step, aside)
            _put_aside(aside, f"after step {resume_step}, which the run went on from", after)

    def _note(self, path: Path, resume_step: int, log_every: int) -> None:
        """Note what the first new line says of the restart."""
        self._mark = {"run/resumed_from": resume_step}
        last, expected = self.record.get("step"), resume_step - resume_step % log_every
        # A run that begins with another's steps (`train.init_from`) has no lines before them.
        if last is not None and last < expected:
            self._mark["run/gap_after"] = last
            log.warning(
                "%s has no lines between steps %d and %d",
                path,
                last,
                resume_step,
                extra=event("metrics_gap", step=resume_step, after=last),
            )

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Write the step's line, or add to it."""
        last_step = self.record.get("step", -1)
        assert step >= last_step, f"step {step} logged after step {last_step}"
        record = self.record
        if step > last_step:
            record, self._mark = {"step": step, **self._mark}, {}
            self._line_start = self._file.seek(0, os.SEEK_END)
        for name, value in values.items():
            record[name] = _plain(value)
            if catalog.is_loss(name):
                record[f"{name}_hex"] = float(value).hex()
        self._take_up(record)
        self._file.seek(self._line_start)
        self._file.write(_line(record))
        self._file.truncate()
        self._file.flush()

    def close(self) -> None:
        """Close the file; everything written is on disk then."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _take_up(self, record: dict[str, Any]) -> None:
        self.record = record
        flops = record.get("train/flops")
        self.line_flops = None
        if isinstance(flops, float | int):
            self.flops = self.line_flops = float(flops)


def _keep_whole(path: Path) -> None:
    """Give a file of another run's lines another name: its history is not this run's to erase."""
    if not path.exists() or not path.stat().st_size:
        return
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    kept = path.with_name(f"{path.name}.before-{written:%Y%m%dT%H%M%SZ}")
    number = 2
    while kept.exists():
        kept = path.with_name(f"{path.name}.before-{written:%Y%m%dT%H%M%SZ}-{number}")
        number += 1
    path.rename(kept)
    log.warning("the run begins at step 0; the metrics that were there are kept as %s", kept)


def _put_aside(path: Path, reason: str, lines: list[Line]) -> None:
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    with path.open("ab") as file:
        file.write(_line({"time": now, "reason": reason, "lines": len(lines)}))
        for line in lines:
            file.write(line.text.rstrip(b"\n") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _plain(value: float | str) -> float | str | None:
    if isinstance(value, str | int):
        return value
    return float(value) if math.isfinite(value) else None


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
