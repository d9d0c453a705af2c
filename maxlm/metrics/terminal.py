"""What people see of a run: a summary at the start, a progress line, a summary at the end.

In a terminal the progress line is redrawn in place; in a pipe or a file each logged step is a plain
line.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from maxlm.metrics.history.goodput import LOSSES, Goodput

_RECENT = 32  # updates that the ETA looks back on
_NARROWEST_BAR = 10


@dataclasses.dataclass(frozen=True)
class Summary:
    """What is known before the first step.

    Attributes:
      run_dir: the run directory.
      num_parameters: of the model.
      memory_bytes: estimate for one device, by part.
      mesh: devices along each axis.
      num_devices: in the mesh.
      device_kind: as jax names it.
      num_steps: optimizer steps of the whole run.
      resume_step: steps already done.
      tokens_per_step: over the whole mesh.
      total_tokens: of the whole run.
      total_flops: of the whole run.
      bubble: share of a step in which a pipeline's stages wait for each other; None without a
        pipeline.
      stage_inputs: microbatches' activations that each stage of a pipeline keeps, and their bytes.
      mixture: lines about what is read of each source, where there are several.
    """

    run_dir: str
    num_parameters: int
    memory_bytes: Mapping[str, int]
    mesh: Mapping[str, int]
    num_devices: int
    device_kind: str
    num_steps: int
    resume_step: int
    tokens_per_step: int
    total_tokens: int
    total_flops: float
    bubble: float | None = None
    stage_inputs: tuple[int, int] = (0, 0)
    mixture: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What is known after the last step.

    Attributes:
      step: optimizer steps done.
      num_steps: optimizer steps of the whole run.
      values: last metrics by their names in the catalogue (`train/loss`, `val/<source>/loss`, ...).
      baselines: bits per byte of simpler models on the same validation tokens, by source and name.
      targets: how many validation tokens were predicted, and how many there are, by source.
      tokens: consumed since step 0.
      wall_seconds: of this process.
      places: where things are and what to do next, by label.
      goodput: what the time since the run was created went into; None leaves it out.
    """

    step: int
    num_steps: int
    values: Mapping[str, float | str]
    baselines: Mapping[str, Mapping[str, float]]
    targets: Mapping[str, tuple[int, int]]
    tokens: int
    wall_seconds: float
    places: Mapping[str, str]
    goodput: Goodput | None = None


class RunTerminal:
    """Show a run in the terminal.

    A context manager, so that the cursor comes back whatever happens.
    """

    def __init__(self, console: Console | None = None):
        """Print on standard output, or on the console given."""
        # A pipe stays plain even where FORCE_COLOR makes it look like a terminal.
        interactive = None if sys.stdout.isatty() else False
        self.console = console or Console(
            markup=False, highlight=False, emoji=False, force_interactive=interactive
        )
        self._progress: _Progress | None = None
        self._live: Live | None = None

    def __enter__(self) -> RunTerminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def show_start(self, summary: Summary) -> None:
        """Print the summary and start the progress line."""
        mesh: str | Table = ", ".join(f"{axis} {size}" for axis, size in summary.mesh.items())
        if self.console.is_interactive:
            mesh = _mesh_table(summary.mesh)
        self._progress = _Progress(summary)
        self._title(summary.run_dir)
        self._rows([*_start_rows(summary), ("mesh", mesh)])
        if self.console.is_interactive:
            self._live = Live(
                self._progress,
                console=self.console,
                refresh_per_second=2,
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()

    def show_compiled(self, memory_bytes: int, seconds: float) -> None:
        """Print what the compiler says of the step, where the summary had an estimate."""
        memory = f"; it takes {_bytes(memory_bytes)} per device" if memory_bytes else ""
        self.note(f"step compiled in {seconds:.0f} s{memory}")

    def update(self, step: int, values: Mapping[str, float | str]) -> None:
        """Show a step's metrics; without any, only move the bar.

        Args:
          step: optimizer steps done.
          values: by their names in the catalogue; those of `val/` get a line that stays.
        """
        assert self._progress is not None, "show_start comes first"
        self._progress.update(step, values)
        if self._live is None and "train/loss" in values:
            self.note("  ".join(self._progress.words()))
        for source in _sources(values):
            self.note(f"step {step}  validation on {source}: {_validation_words(source, values)}")

    def note(self, text: str) -> None:
        """Print a line that stays, above the progress line if there is one."""
        self.console.print(Text(text), soft_wrap=True)

    def show_end(self, outcome: Outcome) -> None:
        """End the progress line and print what came out."""
        self._stop()
        # A stop in the last evaluation leaves something to do after the last step.
        goes_on = outcome.step < outcome.num_steps or "resume with" in outcome.places
        state = "stopped" if goes_on else "done"
        self._title(f"{state} after step {outcome.step} of {outcome.num_steps}")
        self._rows(_end_rows(outcome))
        if sources := _sources(outcome.values):
            if self.console.is_interactive:
                self.console.print(Padding(_validation_table(sources, outcome), (1, 0, 1, 2)))
            else:
                for source in sources:
                    self.note(_validation_line(source, outcome))
        self._rows(tuple(outcome.places.items()))

    def _title(self, text: str) -> None:
        if self.console.is_interactive:
            self.console.print(Rule(Text(text, style="bold"), align="left", style="dim"))
        else:
            self.note(text)

    def _rows(self, rows: Sequence[tuple[str, str | Table]]) -> None:
        if not self.console.is_interactive:
            for label, content in rows:
                self.note(f"{label}: {content}")
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True, min_width=11)
        table.add_column(overflow="fold")
        for label, content in rows:
            table.add_row(label, Text(content) if isinstance(content, str) else content)
        self.console.print(Padding(table, (0, 0, 0, 2)))

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class _Progress:
    """The progress line: a bar and the latest metrics, on two lines where one is too narrow."""

    def __init__(self, summary: Summary):
        self._num_steps = summary.num_steps
        self._device_kind = summary.device_kind
        self._start = self._step = summary.resume_step
        self._values: dict[str, float | str] = {}
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)

    def update(self, step: int, values: Mapping[str, float | str]) -> None:
        if not self._recent or step > self._recent[-1][0]:
            self._recent.append((step, time.monotonic()))
        self._step = step
        self._values.update(values)

    def words(self) -> list[str]:
        """Return what the line says, in order."""
        return [f"step {self._step}/{self._num_steps}", *self._metrics(), f"ETA {self._eta()}"]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first, *metrics, last = self.words()
        if not self._values:
            metrics = (
                ["compiling and running the first step ..."] if self._step == self._start else []
            )
        ends, middle = f"{first}  {last}  ", "  ".join(metrics)
        one_line = len(ends) + len(middle) + _NARROWEST_BAR + 2 <= options.max_width
        room = options.max_width - len(ends) - (len(middle) + 2 if one_line else 0)
        if not one_line and len(middle) > options.max_width:
            middle = " ".join(metrics)
        row = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(total=self._num_steps, completed=self._step, width=max(min(room, 60), 1))
        row.add_row(
            Text(first, style="bold"),
            bar,
            *([Text(middle)] if one_line else []),
            Text(last, style="cyan"),
        )
        yield row
        if not one_line:
            yield Text(middle)

    def _metrics(self) -> list[str]:
        formats = {
            "train/loss": lambda value: f"loss {value:.4f}",
            "optim/learning_rate": lambda value: f"lr {value:.2e}",
            "optim/gradient_norm": lambda value: f"grad {value:.3g}",
            "throughput/tokens_per_second": lambda value: f"{_count(value)} tok/s",
            "throughput/mfu": lambda value: f"MFU {value:.1%}",
            "time/input_wait_fraction": lambda value: f"input wait {value:.1%}",
        }
        absent = {"throughput/mfu": f"MFU n/a on {self._device_kind}"}
        return [
            write(self._values[name]) if name in self._values else absent[name]
            for name, write in formats.items()
            if name in self._values or name in absent
        ]

    def _eta(self) -> str:
        """Extrapolate the wall time of recent steps, evaluations and checkpoints included."""
        if len(self._recent) < 2:
            seconds_per_step = self._values.get("time/step_seconds")
        else:
            (first_step, start), (last_step, end) = self._recent[0], self._recent[-1]
            seconds_per_step = (end - start) / (last_step - first_step)
        if not isinstance(seconds_per_step, float):
            return "-"
        return duration(seconds_per_step * (self._num_steps - self._step))


def _start_rows(summary: Summary) -> list[tuple[str, str]]:
    parts = ", ".join(f"{part} {_bytes(size)}" for part, size in summary.memory_bytes.items())
    total_tokens = f"{_count(summary.total_tokens)} in {summary.num_steps} steps"
    rows = [
        ("parameters", f"{summary.num_parameters:,}"),
        (
            "memory, estimated",
            f"about {_bytes(sum(summary.memory_bytes.values()))} per device: {parts}",
        ),
        ("tokens", f"{summary.tokens_per_step:,} per step, {total_tokens}"),
        ("compute", f"{summary.total_flops:.3g} FLOPs"),
        ("devices", f"{summary.num_devices} x {summary.device_kind}"),
    ]
    if summary.bubble is not None:
        number, size = summary.stage_inputs
        rows.append(
            (
                "pipeline",
                f"bubble {summary.bubble:.1%} of a step, {number} stage inputs kept ({_bytes(size)})",
            )
        )
    rows += [("mixture", line) for line in summary.mixture]
    if summary.resume_step:
        rows.insert(0, ("resuming", f"after step {summary.resume_step}"))
    return rows


def _end_rows(outcome: Outcome) -> list[tuple[str, str]]:
    loss = outcome.values.get("train/loss")
    rows = [("train loss", f"{loss:.4f}")] if isinstance(loss, float) else []
    rows.append(("tokens", f"{outcome.tokens:,} seen"))
    rows += [
        ("validation", f"{_targets(source, outcome)} tokens of {source}")
        for source in outcome.targets
    ]
    rows.append(("wall time", duration(outcome.wall_seconds)))
    if outcome.goodput is not None:
        rows.append(("goodput", _goodput_words(outcome.goodput)))
    return rows


def _goodput_words(goodput: Goodput) -> str:
    """Say which share of the time was of use, and where the rest went, most first."""
    lost = sorted(((goodput.seconds[cause], cause) for cause in LOSSES), reverse=True)
    shares = [(cause, seconds / goodput.total) for seconds, cause in lost if seconds > 0]
    parts = ", ".join(f"{cause} {share:.1%}" for cause, share in shares if share >= 5e-4)
    since = f"{goodput.fraction:.1%} of {duration(goodput.total)} since the run was created"
    return f"{since}; {parts}" if parts else since


def _mesh_table(mesh: Mapping[str, int]) -> Table:
    """Draw one column per axis, those that split nothing dimmed."""
    table = Table(box=None, pad_edge=False)
    for axis, size in mesh.items():
        style = "bold" if size > 1 else "dim"
        table.add_column(axis, justify="right", style=style, header_style=style)
    table.add_row(*(str(size) for size in mesh.values()))
    return table


def _validation_table(sources: list[str], outcome: Outcome) -> Table:
    """Draw one row per source: the model, then the baselines, green where the model is below."""
    names = list(
        dict.fromkeys(name for source in sources for name in outcome.baselines.get(source, {}))
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    table.add_column("validation", min_width=11)
    for heading in ("loss", "bits per byte", *names):
        table.add_column(heading, justify="right")
    for source in sources:
        loss, model = _validation(source, outcome.values)
        row = [Text(source), Text(f"{loss:.4f}"), Text(f"{model:.3f}", style="bold")]
        for name in names:
            baseline = outcome.baselines.get(source, {}).get(name)
            cell = (
                Text("-")
                if baseline is None
                else Text(f"{baseline:.3f}", "green" if model < baseline else "yellow")
            )
            row.append(cell)
        table.add_row(*row)
    return table


def _validation_line(source: str, outcome: Outcome) -> str:
    baselines = outcome.baselines.get(source, {})
    beside = ", ".join(f"{name} {value:.3f}" for name, value in baselines.items())
    line = f"validation on {source}: {_validation_words(source, outcome.values)}"
    return f"{line} ({beside})" if beside else line


def _targets(source: str, outcome: Outcome) -> str:
    """Say how many of the validation tokens were predicted: `32,640 of 134,981`."""
    evaluated, whole = outcome.targets[source]
    return f"{evaluated:,} of {whole:,}" if whole > evaluated else f"all {whole:,}"


def _validation_words(source: str, values: Mapping[str, float | str]) -> str:
    loss, bits_per_byte = _validation(source, values)
    return f"loss {loss:.4f}, {bits_per_byte:.3f} bits per byte"


def _validation(source: str, values: Mapping[str, float | str]) -> tuple[float, float]:
    nan = float("nan")
    return float(values.get(f"val/{source}/loss", nan)), float(
        values.get(f"val/{source}/bits_per_byte", nan)
    )


def _sources(values: Mapping[str, float | str]) -> list[str]:
    return [
        name.split("/")[1] for name in values if name.startswith("val/") and name.endswith("/loss")
    ]


def _count(value: float) -> str:
    """Write a large number with three digits: 12.3k, 9.83M, 15.6T."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def _bytes(value: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """Write a time: 0:07, 1:02:03, 2d 03:04:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}:{minutes:02}:{seconds:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
