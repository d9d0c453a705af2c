"""The training loop, as it happens: restore or create, step, report, evaluate, save, stop."""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from maxlm.checkpoint import Checkpointer, RunDirectory, SlowTier, bring_back, tokenizer_to_open
from maxlm.config.errors import UserError
from maxlm.config.schema import RunConfig
from maxlm.data.loader import DeviceLoader
from maxlm.data.token_hash import hexdigest
from maxlm.events import event
from maxlm.health.start import check_run_folder
from maxlm.metrics.history import History
from maxlm.models.cost import parameter_count
from maxlm.models.decoder import Decoder
from maxlm.process.peers import Peers, meeting
from maxlm.process.phases import phase, stepped, waiting
from maxlm.runtime import ProfileWindow, StopSignal, explain_memory, memory_bytes, settle
from maxlm.sharding.host import HOST_MEMORY
from maxlm.sharding.mesh import batch_sharding
from maxlm.train.evaluate import evaluate
from maxlm.train.faults.dump import Dumps
from maxlm.train.faults.replicas import Replicas
from maxlm.train.faults.resized import fit, tell_resized
from maxlm.train.faults.roll_back import roll_back
from maxlm.train.faults.skipped import Skipped
from maxlm.train.initial import open_source, start_of
from maxlm.train.loss.gradients import Batch, Sums
from maxlm.train.programs.cache import kept_programs
from maxlm.train.programs.watch import CompileWatch
from maxlm.train.report import Reporter
from maxlm.train.resume.changes import check_resume
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


def train(config: RunConfig, *, command: str, history: History | None = None) -> bool:
    """Train a run to its end, or until a signal stops it; resume it if its directory has
    checkpoints. Return whether it is done.

    Args:
      config: the run.
      command: how to start it again, for messages.
      history: that of this process so far, entered; by default it begins here.

    Raises:
      UserError: a setting, the data, the directory or a checkpoint is not as it must be.
      RunFailedError: too many steps in a row were not finite.
    """
    if history is None:
        with History() as history:
            return train(config, command=command, history=history)
    bring_back(config)
    config = fit(config)
    datasets = open_datasets(_with_own_tokenizer(config))
    source = open_source(config, datasets.train.tokenizer.fingerprint)
    program = build_program(config, num_ids=datasets.train.tokenizer.vocab_size)
    _refuse_too_large_a_state(config, program)
    with explain_memory(_MORE_ROOM), contextlib.ExitStack() as stack:
        compiles = stack.enter_context(CompileWatch(lambda: history.time.repeats))
        history.time.meter("compile", lambda: compiles.seconds)
        run_dir = stack.enter_context(RunDirectory.open(config.run_dir))
        history.open(run_dir.path, process=jax.process_index())
        stack.enter_context(kept_programs(config.runtime.compile_cache, run_dir.path))
        check_run_folder(run_dir.path, program.state, config.checkpoint)
        peers = Peers(run_dir.path, jax.process_index(), jax.process_count())
        stack.enter_context(meeting(peers))
        tier = stack.enter_context(SlowTier(config, run_dir.path))
        checkpointer = stack.enter_context(
            Checkpointer(run_dir.checkpoints, config.checkpoint, tier)
        )
        checkpointer.go_back(config)
        circumstances = Circumstances.of(config, program, datasets)
        differences = check_resume(checkpointer.latest_record(), config, circumstances)
        run_dir.keep_tokenizer(datasets.train.tokenizer.files)
        with history.time.phase("restore"):
            restored = checkpointer.restore(
                program.state, saved_as=lambda record: state_as_saved(record, config, program)
            )
            start = start_of(restored, source, program, config)
        measured = history.last("stop_time") if restored else None
        if measured is not None:
            checkpointer.stop_time.recall(measured.step, measured.values.get("seconds"))
        tell_resized(restored.record if restored else None, program.mesh_sizes, config)
        consumption = Consumption(start.consumed, start.step, config)
        reporter = stack.enter_context(
            Reporter(
                config,
                program,
                datasets,
                run_dir=run_dir.path,
                resume_step=start.step,
                differences=[str(one) for one in differences],
                consumption=consumption,
                history=history,
            )
        )
        with history.time.phase("compile"):
            compiled = compile_step(config, program)
            losses = compile_losses(config, program)
        _refuse_too_large_a_step(compiled, program)
        reporter.start_clock(compiled, compiles)
        begun = _Begun(
            losses,
            start.published,
            circumstances.record(),
            loss_check(restored, differences, config, consumption, circumstances),
            restored is not None and restored.record.get("evaluation_due", False),
        )
        loop = _Loop(
            config, program, datasets, compiled, checkpointer, reporter, consumption, begun
        )
        stop = stack.enter_context(StopSignal())  # from here on there is something to save
        step = loop.run(
            start.state,
            start.step,
            stop.requested,
            ProfileWindow(config.runtime.profile, run_dir.path / "profile"),
        )
        with history.time.phase("save"):
            checkpointer.wait()
        done = step >= config.train.num_steps and not loop.evaluation_due
        with phase("evaluation"):
            reporter.end(step, _places(config, command, done=done))
        return done


class _Begun(NamedTuple):
    """What a start of a run has besides its state.

    Attributes:
      losses: of a batch, compiled.
      published: of the weights that the run began with, for an export that is like them.
      circumstances: what its numbers depend on, as records have it.
      loss_check: compares the first losses with those before the resume.
      evaluation_due: a stop cut the evaluation of the last step done short: it comes first.
    """

    losses: Callable[[Decoder, Batch], Sums]
    published: dict[str, Any] | None
    circumstances: dict[str, Any]
    loss_check: LossCheck
    evaluation_due: bool


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
        begun: _Begun,
    ):
        self.config, self.datasets, self.compiled = config, datasets, compiled
        self.checkpointer, self.reporter, self.consumption = checkpointer, reporter, consumption
        self.program, self.sharding = program, batch_sharding(program.mesh)
        self.time = reporter.history.time
        self.begun, self.evaluation_due = begun, begun.evaluation_due
        self.skipped_in_row = 0
        dumps = Dumps(datasets.train, consumption, config)
        self.skipped = Skipped(config.train, dumps.write, saved_before=self._saved_before)
        self.replicas = Replicas(
            program.state, program.mesh, every=config.runtime.check_replicas_every
        )

    def run(
        self, state: TrainState, start: int, stop: Callable[[int], bool], profile: ProfileWindow
    ) -> int:
        """Run steps until the end or a stop; return the number of steps done."""
        train = self.config.train
        step = start
        pending: StepMetrics | None = None
        if self.evaluation_due:
            self._evaluate(start, state, stop)
        with phase("step"), self._loader(start) as loader:
            self.time.meter("input", lambda: loader.wait_seconds)
            for _, batch in loader:
                self.checkpointer.stop_time.step()
                profile.update(step)
                with waiting():
                    state, metrics = settle(self.compiled.run(state, batch))
                # Only now is the step before read: the device already has its next work.
                if self._read(step, pending, loader, state, last=False):
                    state = self._roll_back(step, pending, state)
                    state, metrics = settle(self.compiled.run(state, batch))
                step, pending = step + 1, metrics
                stepped(step)
                stopping = step < train.num_steps and stop(step)
                ending = stopping or step == train.num_steps
                evaluating = step == train.num_steps or _due(step, train.eval_every)
                checkpoint = self.config.checkpoint
                saving = ending or _due(step, checkpoint.every) or step in checkpoint.at_steps
                if evaluating or saving:
                    if self._read(step, pending, loader, state, last=ending):
                        state = self._roll_back(step, pending, state)
                    pending = None
                if evaluating:
                    self._evaluate(step, state, stop)
                    stopping |= self.evaluation_due
                saving |= stopping
                self.replicas.check(step, state, now=saving)
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
        self,
        step: int,
        pending: StepMetrics | None,
        loader: DeviceLoader,
        state: TrainState,
        *,
        last: bool,
    ) -> bool:
        """Wait for a step's metrics and log them where it is due; return whether what was learned
        since a checkpoint is to be taken back.

        Raises:
          RunFailedError: the run has diverged.
        """
        if pending is None:
            return False
        with waiting():
            metrics: StepMetrics = jax.device_get(pending)
        self.skipped_in_row = int(metrics.skipped_in_row)
        self.reporter.progress(step)
        diverged = self.skipped.read(step, metrics, state.spikes)
        if last or _due(step, self.config.train.log_every):
            self.reporter.step(
                step,
                metrics,
                wait_seconds=loader.wait_seconds,
                stall_seconds=self.checkpointer.stall_seconds,
            )
        if not metrics.skipped_in_row:
            self.begun.loss_check.add(step, float(metrics.sums.objective))
        return diverged

    def _roll_back(self, step: int, pending: StepMetrics | None, state: TrainState) -> TrainState:
        self.checkpointer.wait()
        metrics: StepMetrics = jax.device_get(pending)
        with self.time.phase("restore"):
            back = roll_back(state, step, metrics, program=self.program, config=self.config)
        if back is None:
            cause = f"the run diverged at step {step}, and there is no checkpoint before to roll back to"
            raise self.skipped.failure(step, cause, state.spikes)
        self.skipped_in_row = 0  # what is saved now is as good as the checkpoint
        return back

    def _evaluate(self, step: int, state: TrainState, stop: Callable[[int], bool]) -> None:
        began = time.perf_counter()
        with self.time.phase("evaluation"):
            values = evaluate(
                state.decoder,
                self.datasets.validation,
                self.begun.losses,
                self.program.execution.objective,
                self.sharding,
                max_batches=self.config.train.eval_batches,
                stop=lambda: stop(step),
            )
        self.evaluation_due = values is None
        if values is None:
            log.warning("the evaluation of step %d was cut short; the resumed run repeats it", step)
        else:
            self.reporter.evaluation(step, values, seconds=time.perf_counter() - began)

    def _save(self, step: int, state: TrainState) -> None:
        """Save a state; one with skipped steps in a row takes the place of no other, and is saved
        at the end and at `checkpoint.at_steps` alone.
        """
        settings, skipped = self.config, self.skipped_in_row
        asked_for = step == settings.train.num_steps or step in settings.checkpoint.at_steps
        if skipped and not asked_for:
            log.warning(
                "step %d is not saved: the last %d steps were skipped, and its weights may be why. %s",
                *(step, skipped, self._saved_before(step)),
                extra=event("unsaved", step=step, skipped_in_row=skipped),
            )
            return
        self.begun.loss_check.before_save(step)
        consumed = self.consumption.at(step)
        record = {
            **record_of(self.config, self.program, self.datasets, consumed),
            **self.begun.circumstances,
            "losses": self.begun.loss_check.kept,
            "token_hash": hexdigest(jax.device_get(state.token_hash)),
            **({"published": self.begun.published} if self.begun.published else {}),
            **({"evaluation_due": True} if self.evaluation_due else {}),
        }
        with self.time.phase("save"):
            self.checkpointer.save(step, state, record, replaces=not skipped)

    def _saved_before(self, step: int) -> str:
        """Say which checkpoint is the newest from before the skipped steps in a row."""
        self.checkpointer.wait()
        last_good = step - self.skipped_in_row
        saved = [saved for saved in self.checkpointer.steps() if saved <= last_good]
        if not saved:
            return "There is no checkpoint from before them: a start begins anew"
        return (
            f"The newest checkpoint from before them, where a start goes on, is of step {saved[0]}"
        )


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
