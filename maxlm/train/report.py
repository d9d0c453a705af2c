"""What a run tells people: terminal, metrics.jsonl and TensorBoard, from the first process alone."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import yaml

from maxlm.config.errors import UserError, make_possible
from maxlm.config.reading.loader import LoadedRun
from maxlm.config.schema import RunConfig
from maxlm.config.show import to_yaml
from maxlm.data.baselines import Baselines, measure_baselines
from maxlm.data.token_hash import hexdigest
from maxlm.devices import peak_flops
from maxlm.events import event
from maxlm.files import write_whole
from maxlm.health.exchange import exchange
from maxlm.health.hosts import Process, describe
from maxlm.metrics.history import History
from maxlm.metrics.history.events import EventHandler, Happened
from maxlm.metrics.history.goodput import LOSSES
from maxlm.metrics.prediction import Expectation, check_prediction, read_prediction
from maxlm.metrics.terminal import Outcome, RunTerminal, Summary
from maxlm.metrics.throughput import LapTimer, SlowSteps, rates
from maxlm.metrics.writers.curves import add_text
from maxlm.metrics.writers.writer import MetricsWriter
from maxlm.models import cost
from maxlm.train.evaluate import loss_metrics
from maxlm.train.programs.watch import CompileWatch
from maxlm.train.setup import CompiledStep, Datasets, Program
from maxlm.train.state import Consumption
from maxlm.train.step import StepMetrics

log = logging.getLogger(__name__)

MOST_HOSTS = 64
"""Names of hosts that the event of a start has."""


class Reporter:
    """Turn a step's numbers into the catalogue's metrics and show them. A context manager."""

    def __init__(
        self,
        config: RunConfig,
        program: Program,
        datasets: Datasets,
        *,
        run_dir: Path,
        resume_step: int,
        differences: Sequence[str],
        consumption: Consumption,
        history: History,
    ):
        """Begin to tell of a run; `differences`: what is not as it was when it was saved."""
        self.history = history
        self._config, self._dataset, self._run_dir = config, datasets.train, run_dir
        self._validation = datasets.validation
        self._consumption = consumption
        self._flops_per_token = cost.flops_per_token(config.model, config.data.sequence_length)
        device = program.mesh.devices.flat[0]
        self._num_devices, self._program = program.mesh.size, program
        table_peak = peak_flops(device.device_kind, program.execution.compute_dtype.name)
        self._peak = config.metrics.peak_tflops * 1e12 if config.metrics.peak_tflops else table_peak
        self._began, self._timer = time.perf_counter(), LapTimer()
        self._slow, self._step_ended = SlowSteps(), (time.perf_counter(), 0.0)
        self._logged_step, self._logged_wait = resume_step, 0.0
        self._evaluation_seconds = 0.0
        self._last: dict[str, float | str] = {}
        self._expectation = _expectation(config, tuple(datasets.validation))
        self._terminal: RunTerminal | None = None
        self._writer: MetricsWriter | None = None
        self._compiles: CompileWatch | None = None
        environment = exchange(describe())
        if jax.process_index() == 0:
            self._terminal = RunTerminal()
            self._terminal.show_start(self._summary(program, device.device_kind, resume_step))
            self._writer = MetricsWriter(
                run_dir,
                tensorboard=config.metrics.tensorboard,
                resume_step=resume_step,
                log_every=config.train.log_every,
            )
            # Not in `__exit__`: what happens after it, and the error that ends the run, are shown too.
            history.at_end(self._close_writer)
            if config.metrics.tensorboard:
                history.events.show_last = self._show_last
            _keep_config(config, run_dir)
            _note_start(history.events, config, program, environment, resume_step, differences)
            settings = config.model_dump(mode="json")
            self._writer.text("config", yaml.safe_dump(settings, sort_keys=False), resume_step)
            self._writer.hparams(
                settings, ["train/loss", *(f"val/{name}/loss" for name in datasets.validation)]
            )
            if self._expectation is not None:
                self._writer.charts(self._expectation.charts)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._terminal is not None:
            self._terminal.__exit__(kind, error, trace)

    def _close_writer(self) -> None:
        assert self._writer is not None
        step = self.history.time.step
        with contextlib.closing(self._writer):
            self._show_events(self._logged_step if step is None else step)

    def start_clock(self, compiled: CompiledStep, compiles: CompileWatch) -> None:
        """Say what the compiled step needs, and begin to time steps; compiling's time goes with the
        next logged one.
        """
        self._last["time/compile_seconds"] = compiled.compile_seconds
        if self._terminal is not None:
            self._terminal.show_compiled(compiled.peak_memory_bytes, compiled.compile_seconds)
            self._note_compiled(compiled, compiles)
        self._compiles = compiles
        self._timer = LapTimer()
        self.history.time.count_steps(self._logged_step)
        self._step_ended = time.perf_counter(), self.history.time.elsewhere_seconds

    def _note_compiled(self, compiled: CompiledStep, compiles: CompileWatch) -> None:
        missed = sorted(name for name, times in compiles.missed.items() if times)
        total = sum(compiles.counts.values())
        self.history.events.note(
            "compiled",
            f"the step was ready after {compiled.compile_seconds:.1f} s; of {total} programs until here "
            f"{sum(compiles.missed.values())} were compiled anew",
            step=self._logged_step,
            seconds=compiled.compile_seconds,
            peak_memory_bytes=compiled.peak_memory_bytes,
            compiled_anew=missed,
        )

    def step(
        self, step: int, metrics: StepMetrics, *, wait_seconds: float, stall_seconds: float
    ) -> None:
        """Log the metrics of a step, already on the host.

        Args:
          step: steps done.
          metrics: of the last of them.
          wait_seconds: waited for data since the process started.
          stall_seconds: held up by checkpoints since the process started, all of it outside steps.
        """
        steps, seconds = (
            step - self._logged_step,
            self._timer.lap(self._evaluation_seconds + stall_seconds),
        )
        consumed = self._consumption.at(step)
        of_step = loss_metrics(self._program.execution.objective, [metrics.sums])
        train = {f"train/{name}": value for name, value in of_step.items()}
        values: dict[str, float | str] = {
            **train,
            "train/flops": float(consumed.flops),
            "optim/learning_rate": float(metrics.learning_rate),
            "optim/gradient_norm": float(metrics.gradient_norm),
            "optim/parameter_norm": float(metrics.parameter_norm),
            "optim/update_ratio": float(metrics.update_ratio),
            "optim/skipped_steps": int(metrics.skipped),
            **({} if metrics.spikes is None else {"optim/spikes": int(metrics.spikes.spikes)}),
            **self._program.declared.by_layer(metrics.layers),
            **self._rates(steps, seconds),
            "time/step_seconds": seconds / steps,
            "time/input_wait_fraction": min((wait_seconds - self._logged_wait) / seconds, 1.0),
            "time/checkpoint_stall_seconds": stall_seconds,
            "time/evaluation_seconds": self._evaluation_seconds,
            "data/rows": consumed.rows,
            "data/tokens": consumed.tokens,
            **{
                f"data/epoch/{name}": epochs
                for name, epochs in self._dataset.epochs(consumed.rows).items()
            },
            "data/token_hash": hexdigest(metrics.token_hash),
            **self._goodput(),
        }
        if "time/compile_seconds" in self._last:
            values["time/compile_seconds"] = self._last.pop("time/compile_seconds")
        self._logged_step, self._logged_wait = step, wait_seconds
        self._values(step, values)

    def evaluation(self, step: int, values: Mapping[str, float], *, seconds: float) -> None:
        """Log validation metrics, the FLOPs that they were reached with, and the time they took."""
        self._evaluation_seconds += seconds
        spent = {
            "train/flops": float(self._consumption.at(step).flops),
            "time/evaluation_seconds": self._evaluation_seconds,
        }
        expected = self._expectation.beside(step, values) if self._expectation else {}
        self._values(step, {**values, **expected, **spent})

    def _values(self, step: int, values: Mapping[str, float | str]) -> None:
        self._last |= values
        if self._writer is not None and self._terminal is not None:
            self._writer.write(step, values)
            self._show_events(step)
            self._terminal.update(step, values)

    def _show_events(self, step: int) -> None:
        """Show in TensorBoard what has happened, in this thread: its files are not for two."""
        for happened in self.history.events.untold():
            if self._writer is not None:
                self._writer.text(f"events/{happened.kind}", happened.text, step)

    def _show_last(self, happened: Happened) -> None:
        """Show in TensorBoard what another thread says while this one hangs."""
        step = self._logged_step if happened.step is None else happened.step
        add_text(self._run_dir / "tensorboard", f"events/{happened.kind}", happened.text, step)

    def _goodput(self) -> dict[str, float]:
        """Write down the time until now, and return what all of it went into."""
        self.history.time.mark()
        goodput = self.history.time.goodput
        lost = {f"goodput/{cause}_seconds": goodput.seconds[cause] for cause in LOSSES}
        return {"goodput/fraction": goodput.fraction, **lost}

    def progress(self, step: int) -> None:
        """Move the progress bar, and look whether the step was slow."""
        self.history.time.at(step)
        if self._terminal is not None:
            self._terminal.update(step, {})
            self._look_for_slow_steps(step)

    def _look_for_slow_steps(self, step: int) -> None:
        ended, elsewhere = self._step_ended
        self._step_ended = time.perf_counter(), self.history.time.elsewhere_seconds
        now, by_now = self._step_ended
        slow = self._slow.look_at(now - ended - (by_now - elsewhere))
        if slow is not None:
            log.warning(
                "step %d took %.1f s, the median of those before it is %.2f s",
                step,
                slow.seconds,
                slow.median,
                extra=event("slow_step", step=step, **slow._asdict()),
            )

    def end(self, step: int, places: Mapping[str, str]) -> None:
        """Show what came out.

        Args:
          step: steps done.
          places: where things are and what to do next, by label.
        """
        self.history.time.count_no_steps()
        state = "done" if step >= self._config.train.num_steps else "stopped"
        text = f"{state} after step {step} of {self._config.train.num_steps}"
        programs = self._compiles.longest() if self._compiles else {}
        self.history.events.note("end", text, step=step, state=state, programs=programs)
        if self._terminal is None:
            return
        self._show_events(step)
        baselines = self._baselines()
        self._terminal.show_end(
            Outcome(
                step=step,
                num_steps=self._config.train.num_steps,
                values=self._last,
                baselines={name: measured.bits_per_byte for name, measured in baselines.items()},
                targets={
                    name: (measured.targets, self._num_targets(name))
                    for name, measured in baselines.items()
                },
                tokens=self._consumption.at(step).tokens,
                wall_seconds=time.perf_counter() - self._began,
                places=places,
                goodput=self.history.time.goodput,
            )
        )

    def _baselines(self) -> dict[str, Baselines]:
        """Measure simpler models on the tokens that the evaluations read, source by source."""
        rows = self._config.train.eval_batches * self._config.train.batch_size
        max_tokens = rows * self._config.data.sequence_length + 1  # the first is no target
        return {
            name: measure_baselines(
                self._dataset.shards[name],
                dataset.shards[name],
                dataset.tokenizer,
                max_tokens=max_tokens,
            )
            for name, dataset in self._validation.items()
            if f"val/{name}/loss" in self._last
        }

    def _num_targets(self, source: str) -> int:
        """Count the targets in the whole validation split."""
        return self._validation[source].shards[source].num_targets

    def _rates(self, steps: int, seconds: float) -> dict[str, float]:
        return rates(
            tokens=steps * self._consumption.per_step.tokens,
            seconds=seconds,
            num_devices=self._num_devices,
            flops_per_token=self._flops_per_token,
            peak=self._peak,
        )

    def _summary(self, program: Program, device_kind: str, resume_step: int) -> Summary:
        num_steps = self._config.train.num_steps
        total = self._consumption.at(num_steps)
        itemsize: Any = program.execution.compute_dtype.itemsize
        schedule = program.execution.schedule
        kept = schedule.repeats * schedule.slots
        inputs = math.prod(program.activations(self._config)) * itemsize
        return Summary(
            run_dir=str(self._run_dir),
            num_parameters=cost.parameter_count(self._config.model),
            memory_bytes=program.memory_per_device(self._config),
            mesh=program.mesh_sizes.sizes,
            num_devices=self._num_devices,
            device_kind=device_kind,
            num_steps=num_steps,
            resume_step=resume_step,
            tokens_per_step=self._consumption.per_step.tokens,
            total_tokens=total.tokens,
            total_flops=float(total.flops),
            bubble=schedule.bubble if schedule.stages > 1 else None,
            stage_inputs=(kept, kept * inputs),
            mixture=tuple(self._dataset.reading_lines(total.rows)),
        )


def _expectation(config: RunConfig, sources: Sequence[str]) -> Expectation | None:
    """Read what a ladder foretold of the run's loss (`metrics.prediction`), if anything.

    Raises:
      UserError: it cannot be read, or is of another run.
    """
    path = config.metrics.prediction
    if path is None:
        return None
    prediction = read_prediction(path)
    check_prediction(
        prediction,
        path,
        parameters=cost.parameter_count(config.model),
        tokens=config.train.num_steps * config.tokens_per_step,
        losses=[f"val/{name}/loss" for name in sources],
    )
    return Expectation(prediction, config.train.num_steps)


def _keep_config(config: RunConfig, run_dir: Path) -> None:
    """Write the settings into the run's folder, as YAML that starts the same run.

    Raises:
      UserError: it cannot be written.
    """
    path = run_dir / "config.yaml"
    try:
        write_whole(path, to_yaml(LoadedRun(config, {})).encode())
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}; {make_possible(error)}"
        ) from error


def _note_start(
    events: EventHandler,
    config: RunConfig,
    program: Program,
    environment: Sequence[Process],
    resume_step: int,
    differences: Sequence[str],
) -> None:
    """Note that the run begins or goes on, and where: hosts, devices, versions, and what is not as
    it was saved.
    """
    hosts = list(dict.fromkeys(process["host"] for process in environment))
    devices = Counter(kind for process in environment for kind in process["devices"])
    where = f"on {len(hosts)} host{'s' * (len(hosts) > 1)} with " + ", ".join(
        f"{number} x {kind}" for kind, number in devices.items()
    )
    done = f"after step {resume_step} of {config.train.num_steps}"
    text = f"resumed {done} {where}" if resume_step else f"started {where}"
    differing: dict[str, Any] = {"differences": differences} if resume_step else {}
    events.note(
        "resume" if resume_step else "start",
        text,
        step=resume_step,
        hosts=hosts[:MOST_HOSTS],
        num_hosts=len(hosts),
        num_processes=len(environment),
        devices=dict(devices),
        mesh=program.mesh_sizes.sizes,
        kernels=program.kernels,
        versions=environment[0]["versions"],
        parameters=cost.parameter_count(config.model),
        **differing,
    )
