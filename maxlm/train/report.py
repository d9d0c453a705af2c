"""What a run tells people: terminal, metrics.jsonl and TensorBoard, from the first process alone."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import yaml

from maxlm.config.schema import ModelConfig, RunConfig
from maxlm.data.baselines import read_baselines
from maxlm.data.token_hash import hexdigest
from maxlm.devices import peak_flops
from maxlm.metrics.terminal import Outcome, RunTerminal, Summary
from maxlm.metrics.throughput import rates
from maxlm.metrics.writers import MetricsWriter
from maxlm.models import cost
from maxlm.train.evaluate import loss_metrics
from maxlm.train.setup import Datasets, Program
from maxlm.train.step import StepMetrics


class Reporter:
    """Turn a step's numbers into the catalogue's metrics and show them. A context manager."""

    def __init__(self, config: RunConfig, program: Program, datasets: Datasets, *, run_dir: Path, resume_step: int):
        self._config, self._dataset, self._run_dir = config, datasets.train, run_dir
        self._tokens_per_step = config.train.batch_size * config.data.sequence_length
        self._flops_per_token = cost.flops_per_token(config.model, config.data.sequence_length)
        device = program.mesh.devices.flat[0]
        self._num_devices, self._layer_order = program.mesh.size, program.layer_order
        table_peak = peak_flops(device.device_kind, program.how.compute_dtype.name)
        self._peak = config.metrics.peak_tflops * 1e12 if config.metrics.peak_tflops else table_peak
        self._began = self._mark = time.perf_counter()
        self._logged_step, self._logged_wait = resume_step, 0.0
        self._last: dict[str, float | str] = {}
        self._terminal: RunTerminal | None = None
        self._writer: MetricsWriter | None = None
        if jax.process_index() == 0:
            self._terminal = RunTerminal()
            self._terminal.show_start(self._summary(program, device.device_kind, resume_step))
            self._writer = MetricsWriter(run_dir, tensorboard=config.metrics.tensorboard, resume_step=resume_step)
            settings = config.model_dump(mode="json")
            self._writer.text("config", yaml.safe_dump(settings, sort_keys=False), resume_step)
            self._writer.hparams(settings, ["train/loss", *(f"val/{name}/loss" for name in datasets.validation)])

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal is not None:
            self._terminal.__exit__(kind, error, trace)
        if self._writer is not None:
            self._writer.close()

    def start_clock(self, compile_seconds: float) -> None:
        """Begin to time steps, after compiling; `compile_seconds` goes with the next logged step."""
        self._last["time/compile_seconds"] = compile_seconds
        self._mark = time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Leave time spent on something else than steps out of their timing."""
        self._mark += seconds

    def step(self, step: int, metrics: StepMetrics, *, wait_seconds: float, stall_seconds: float) -> None:
        """Log the metrics of a step, already on the host.

        Args:
          step: steps done.
          metrics: of the last of them.
          wait_seconds: waited for data since the process started.
          stall_seconds: held up by checkpoints since the process started.
        """
        now = time.perf_counter()
        steps, seconds = step - self._logged_step, max(now - self._mark, 1e-9)
        tokens = step * self._tokens_per_step
        train = {f"train/{name}": value for name, value in loss_metrics([metrics.sums]).items()}
        values: dict[str, float | str] = {
            **train,
            "train/flops": tokens * self._flops_per_token,
            "optim/learning_rate": float(metrics.learning_rate),
            "optim/gradient_norm": float(metrics.gradient_norm),
            "optim/parameter_norm": float(metrics.parameter_norm),
            "optim/update_ratio": float(metrics.update_ratio),
            "optim/skipped_steps": int(metrics.skipped),
            **router_values(self._config.model, metrics.routers, self._layer_order),
            **self._rates(steps, seconds),
            "time/step_seconds": seconds / steps,
            "time/input_wait_fraction": min((wait_seconds - self._logged_wait) / seconds, 1.0),
            "time/checkpoint_stall_seconds": stall_seconds,
            "data/tokens": tokens,
            **{f"data/epoch/{name}": epochs for name, epochs in self._dataset.epochs(step).items()},
            "data/token_hash": hexdigest(metrics.token_hash),
        }
        if "time/compile_seconds" in self._last:
            values["time/compile_seconds"] = self._last.pop("time/compile_seconds")
        self._mark, self._logged_step, self._logged_wait = now, step, wait_seconds
        self._values(step, values)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Log validation metrics, and the FLOPs that they were reached with."""
        self._values(step, {**values, "train/flops": step * self._tokens_per_step * self._flops_per_token})

    def _values(self, step: int, values: Mapping[str, float | str]) -> None:
        self._last |= values
        if self._writer is not None and self._terminal is not None:
            self._writer.write(step, values)
            self._terminal.update(step, values)

    def progress(self, step: int) -> None:
        """Move the progress bar."""
        if self._terminal is not None:
            self._terminal.update(step, {})

    def end(self, step: int, places: Mapping[str, str]) -> None:
        """Show what came out.

        Args:
          step: steps done.
          places: where things are and what to do next, by label.
        """
        if self._terminal is None:
            return
        baselines = {name: read_baselines(source.path) for name, source in self._config.data.sources.items()}
        self._terminal.show_end(
            Outcome(
                step=step,
                num_steps=self._config.train.num_steps,
                values=self._last,
                baselines=baselines,
                tokens=step * self._tokens_per_step,
                wall_seconds=time.perf_counter() - self._began,
                places=places,
            )
        )

    def _rates(self, steps: int, seconds: float) -> dict[str, float]:
        return rates(
            tokens=steps * self._tokens_per_step,
            seconds=seconds,
            num_devices=self._num_devices,
            flops_per_token=self._flops_per_token,
            peak=self._peak,
        )

    def _summary(self, program: Program, device_kind: str, resume_step: int) -> Summary:
        num_steps = self._config.train.num_steps
        total_tokens = num_steps * self._tokens_per_step
        itemsize: Any = program.how.compute_dtype.itemsize
        schedule = program.how.schedule
        kept = schedule.repeats * schedule.slots
        before = schedule.stages * cost.prefix_work(self._config.model, self._config.data.sequence_length)
        inputs = math.prod(program.activations(self._config)) * itemsize
        return Summary(
            run_dir=str(self._run_dir),
            num_parameters=cost.parameter_count(self._config.model),
            memory_bytes=cost.memory_per_device(self._config, program.mesh_sizes, compute_bytes=itemsize),
            mesh=program.mesh_sizes.sizes,
            num_devices=self._num_devices,
            device_kind=device_kind,
            num_steps=num_steps,
            resume_step=resume_step,
            tokens_per_step=self._tokens_per_step,
            total_tokens=total_tokens,
            total_flops=total_tokens * self._flops_per_token,
            bubble=schedule.bubble(before) if schedule.stages > 1 else None,
            stage_inputs=(kept, kept * inputs),
        )


def router_values(
    model: ModelConfig, routers: dict[int, dict[str, Any]], layer_order: Sequence[int]
) -> dict[str, float]:
    """Name the metrics of every router by its layer's number in the whole model."""
    values = {}
    for place, metrics in routers.items():
        for name, of_layers in metrics.items():
            for repeat, value in zip(layer_order, of_layers, strict=True):
                layer = len(model.prefix) + repeat * len(model.pattern) + place
                values[f"moe/{layer}/{name}"] = float(value)
    return values
