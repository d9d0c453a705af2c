"""The training loop, as it happens: restore or create, step, report, evaluate, save, stop."""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
import time
from collections.abc import Callable
from typing import Any

import jax

from maxlm.checkpoint import Checkpointer, RunDirectory, tokenizer_to_open
from maxlm.config.errors import RunFailedError, UserError
from maxlm.config.schema import RunConfig
from maxlm.data.loader import DeviceLoader
from maxlm.data.token_hash import hexdigest
from maxlm.health.start import check_run_folder
from maxlm.models.cost import parameter_count
from maxlm.runtime import ProfileWindow, StopSignal, Watchdog, explain_memory, memory_bytes, settle
from maxlm.sharding.host import HOST_MEMORY
from maxlm.sharding.mesh import batch_sharding
from maxlm.train.evaluate import evaluate
from maxlm.train.initial import open_source, start_of
from maxlm.train.report import Reporter
from maxlm.train.resume.changes import check_resume, say_resumed
from maxlm.train.resume.losses import LossCheck, loss_check
from maxlm.train.resume.record import Circumstances, record_of
from maxlm.train.setup import (
    CompiledStep,
    Datasets,
    Program,
    build_program,
    compile_losses,
    compile_step,
    open_datasets,
    state_as_saved,
)
from maxlm.train.state import Consumption, TrainState
from maxlm.train.step import StepMetrics

log = logging.getLogger(__name__)

_MORE_ROOM = "use more devices, train.remat=full, more train.microbatches, or a smaller train.batch_size or model"


def train(config: RunConfig, *, command: str) -> bool:
    """Train a run to its end, or until a signal stops it; resume it if its directory has
    checkpoints. Return whether it is done.

    Args:
      config: the run.
      command: how to start it again, for messages.

    Raises:
      UserError: a setting, the data, the directory or a checkpoint is not as it must be.
      RunFailedError: too many steps in a row were not finite.
    """
    datasets = open_datasets(_with_own_tokenizer(config))
    source = open_source(config, datasets.train.tokenizer.fingerprint)
    program = build_program(config, num_ids=datasets.train.tokenizer.vocab_size)
    _refuse_too_large_a_state(config, program)
    with explain_memory(_MORE_ROOM), contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        run_dir = stack.enter_context(RunDirectory.open(config.run_dir))
        check_run_folder(run_dir.path, program.state, config.checkpoint)
        checkpointer = stack.enter_context(Checkpointer(run_dir.checkpoints, config.checkpoint))
        circumstances = Circumstances.of(config, program, datasets)
        differences = check_resume(checkpointer.latest_record(), config, circumstances)
        run_dir.keep_tokenizer(datasets.train.tokenizer.files)
        restored = checkpointer.restore(
            program.state, saved_as=lambda record: state_as_saved(record, config, program)
        )
        start = start_of(restored, source, program, config)
        consumption = Consumption(start.consumed, start.step, config)
        say_resumed(restored, differences)
        reporter = stack.enter_context(
            Reporter(
                config,
                program,
                datasets,
                run_dir=run_dir.path,
                resume_step=start.step,
                consumption=consumption,
            )
        )
        compiled = compile_step(config, program)
        _refuse_too_large_a_step(compiled, program)
        reporter.start_clock(compiled)
        loop = _Loop(config, program, datasets, compiled, checkpointer, reporter, consumption)
        loop.published = start.published
        loop.circumstances = circumstances.record()
        loop.loss_check = loss_check(restored, differences, config, consumption, circumstances)
        stack.callback(loop.watchdog.disarm)
        step = loop.run(
            start.state,
            start.step,
            stop.requested,
            ProfileWindow(config.runtime.profile, run_dir.path / "profile"),
        )
        checkpointer.wait()
        done = step >= config.train.num_steps
        reporter.end(step, _places(config, command, done=done))
        return done


class _Loop:
    """The parts that every step needs."""

    def __init__(
        self,
        config: RunConfig,
        program: Program,
        datasets: Datasets,
        compiled: CompiledStep,
        checkpointer: Checkpointer,
        reporter: Reporter,
        consumption: Consumption,
    ):
        self.config, self.datasets, self.compiled = config, datasets, compiled
        self.checkpointer, self.reporter, self.consumption = checkpointer, reporter, consumption
        self.program, self.sharding = program, batch_sharding(program.mesh)
        self.losses = compile_losses(program)
        # Of the weights that the run began with, for an export that is like them.
        self.published: dict[str, Any] | None = None
        self.circumstances: dict[str, Any] = {}
        self.loss_check = LossCheck()
        self.watchdog = Watchdog(config.runtime.step_timeout_seconds)

    def run(
        self, state: TrainState, start: int, stop: Callable[[int], bool], profile: ProfileWindow
    ) -> int:
        """Run steps until the end or a stop; return the number of steps done."""
        train = self.config.train
        step = start
        pending: StepMetrics | None = None
        with self._loader(start) as loader:
            for _, batch in loader:
                self.watchdog.arm()
                profile.update(step)
                state, metrics = settle(self.compiled.run(state, batch))
                # Only now is the step before read: the device already has its next work.
                self._read(step, pending, loader, last=False)
                step, pending = step + 1, metrics
                stopping = step < train.num_steps and stop(step)
                ending = stopping or step == train.num_steps
                evaluating = step == train.num_steps or _due(step, train.eval_every)
                checkpoint = self.config.checkpoint
                saving = ending or _due(step, checkpoint.every) or step in checkpoint.at_steps
                if evaluating or saving:
                    self._read(step, pending, loader, last=ending)
                    pending = None
                if evaluating:
                    self._evaluate(step, state)
                if saving:
                    self._save(step, state)
                if stopping:
                    break
        profile.close()
        return step

    def _loader(self, start: int) -> DeviceLoader:
        return DeviceLoader(
            self.datasets.train,
            self.sharding,
            start_row=self.consumption.at(start).rows,
            num_batches=self.config.train.num_steps - start,
            prefetch=self.config.data.prefetch_batches,
        )

    def _read(
        self, step: int, pending: StepMetrics | None, loader: DeviceLoader, *, last: bool
    ) -> None:
        """Wait for a step's metrics; stop a run that has diverged; log where it is due."""
        if pending is None:
            return
        metrics: StepMetrics = jax.device_get(pending)
        self.reporter.progress(step)
        if metrics.skipped_in_row:
            log.warning(
                "step %d was skipped: its loss (%s) or gradient (norm %s) is not finite",
                step,
                float(metrics.sums.objective),
                float(metrics.gradient_norm),
            )
        if metrics.skipped_in_row >= self.config.train.max_skipped_steps:
            raise RunFailedError(
                f"the last {metrics.skipped_in_row} steps, up to step {step}, had a loss or gradient that is not "
                f"finite (loss {float(metrics.sums.objective)}, gradient norm {float(metrics.gradient_norm)}) and were "
                f"skipped (train.max_skipped_steps={self.config.train.max_skipped_steps}). Nothing was saved since. "
                "Lower optimizer.learning_rate or optimizer.clip_norm, or lengthen schedule.warmup_steps, and start "
                "again: from the newest checkpoint with checkpoint.allow_config_change=true, or in another run_dir"
            )
        if last or _due(step, self.config.train.log_every):
            self.reporter.step(
                step,
                metrics,
                wait_seconds=loader.wait_seconds,
                stall_seconds=self.checkpointer.stall_seconds,
            )
        if not metrics.skipped_in_row:
            self.loss_check.add(step, float(metrics.sums.objective))

    def _evaluate(self, step: int, state: TrainState) -> None:
        began = time.perf_counter()
        values = evaluate(
            state.decoder,
            self.datasets.validation,
            self.losses,
            self.program.execution.objective,
            self.sharding,
            max_batches=self.config.train.eval_batches,
        )
        self.reporter.evaluation(step, values, seconds=time.perf_counter() - began)
        self.watchdog.arm()

    def _save(self, step: int, state: TrainState) -> None:
        self.loss_check.before_save(step)
        consumed = self.consumption.at(step)
        record = {
            **record_of(self.config, self.program, self.datasets, consumed),
            **self.circumstances,
            "losses": self.loss_check.kept,
            "token_hash": hexdigest(jax.device_get(state.token_hash)),
            **({"published": self.published} if self.published else {}),
        }
        self.checkpointer.save(step, state, record)
        self.watchdog.arm()


def _with_own_tokenizer(config: RunConfig) -> RunConfig:
    """Return the config with the run's copy of its tokenizer, once there is a checkpoint that was
    trained with it.
    """
    tokenizer = tokenizer_to_open(config.run_dir, config.data.tokenizer)
    return config.model_copy(
        update={"data": config.data.model_copy(update={"tokenizer": tokenizer})}
    )


def _refuse_too_large_a_state(config: RunConfig, program: Program) -> None:
    """Refuse a train state that a device cannot hold, before any array is made.

    Raises:
      UserError: its part of parameters and optimizer, without what lies in host memory, is more
        than its memory.
    """
    leaves = [
        leaf for leaf in jax.tree.leaves(program.state) if leaf.sharding.memory_kind != HOST_MEMORY
    ]
    needed = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )
    device = program.mesh.local_devices[0]
    available = memory_bytes(device)
    if available is not None and needed > available:
        raise UserError(
            f"the model has {parameter_count(config.model):,} parameters; with the optimizer they take "
            f"{needed / 2**30:,.1f} GiB on each device, {device.device_kind} has {available / 2**30:,.1f} GiB; use "
            "more mesh.fsdp, or a smaller model: fewer layers, narrower ones, or a smaller vocabulary"
        )


def _refuse_too_large_a_step(compiled: CompiledStep, program: Program) -> None:
    """Refuse a step that needs more memory than a device has: not all compilers do.

    Raises:
      UserError: it does.
    """
    device = program.mesh.local_devices[0]
    available, needed = memory_bytes(device), compiled.peak_memory_bytes
    if available is not None and needed > available:
        raise UserError(
            f"a step needs {needed / 2**30:,.1f} GiB on each device, {device.device_kind} has "
            f"{available / 2**30:,.1f} GiB; {_MORE_ROOM}"
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _places(config: RunConfig, command: str, *, done: bool) -> dict[str, str]:
    """Say where things are and what to do next; what is shown can be pasted into a shell."""
    run_dir = config.run_dir
    places = {
        "checkpoints": shlex.quote(f"{run_dir}/checkpoints"),
        "metrics": shlex.quote(f"{run_dir}/metrics.jsonl"),
    }
    if config.metrics.tensorboard:
        places["curves"] = shlex.join(["tensorboard", "--logdir", f"{run_dir}/tensorboard"])
    if done:
        # A name that begins with a dash would be an option.
        argument = f"./{run_dir}" if run_dir.startswith("-") else run_dir
        places["sample"] = f'{shlex.join(["maxlm", "generate", argument])} --prompt "..."'
    else:
        places["resume with"] = command
    return places
