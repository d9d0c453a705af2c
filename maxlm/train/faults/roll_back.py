"""Take back what a run learned since a checkpoint, and go on with the batches that follow.

PaLM (arXiv:2204.02311, section 5.1) restarted from a checkpoint before a spike and left out the
batches around it. Here the clock goes on: steps, learning rate, rows and the hash of all tokens
stay what they are, and the steps since the checkpoint count as skipped, as if the devices had
skipped each of them. So the token stream and its hash are those of a run without a roll-back, a
step still reads the rows that its number says, and a run that is killed before its next checkpoint
comes to the same roll-back again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.checkpoint import CheckpointReader, Restored, RunDirectory
from maxlm.config.errors import UserError
from maxlm.config.schema import RunConfig
from maxlm.events import event
from maxlm.train.faults.spikes import new_window
from maxlm.train.initial import with_own_window
from maxlm.train.setup import Program, state_as_saved
from maxlm.train.state import TrainState
from maxlm.train.step import StepMetrics

log = logging.getLogger(__name__)


def first_skipped(skips_W: Any, step: int) -> int:
    """Return the steps done before the first of the last ones that were skipped.

    Args:
      skips_W: which were, in a ring; that of step `step` itself, from 0, may be in it already.
      step: steps done.
    """
    size = len(skips_W)
    last = range(max(step - size + 1, 0), step)
    return next((number for number in last if skips_W[number % size]), step)


def roll_back(
    state: TrainState,
    step: int,
    metrics: StepMetrics,
    *,
    program: Program,
    config: RunConfig,
) -> TrainState | None:
    """Return the state after `step` steps of which all since a checkpoint were skipped; None if
    there is no checkpoint before the first skipped one.

    Args:
      state: after `step` steps or one more; given away, if there is a checkpoint.
      step: steps done.
      metrics: of the last of them, on the host.
      program: of the run.
      config: of the run.
    """
    assert state.spikes is not None, "it is asked for by train.spikes"
    reader = CheckpointReader(RunDirectory(Path(config.run_dir)).checkpoints)
    before = first_skipped(np.asarray(jax.device_get(state.spikes.skips)), step)
    candidates = [saved for saved in reader.steps() if saved <= before]
    if not candidates:
        return None
    # The old state goes before the new one comes: two need not fit.
    for leaf in jax.tree.leaves((state.decoder, state.optimizer, state.carried)):
        leaf.delete()
    restored = _restore(reader, candidates, program, config)
    log.warning(
        "rolled back after step %d: parameters and optimizer are those of step %d, and the batches since are left out",
        step,
        restored.step,
        extra=event("roll_back", step=step, to_step=restored.step, first_skipped=before + 1),
    )
    return _at(with_own_window(restored.state, program), step, metrics, step - restored.step)


def _restore(
    reader: CheckpointReader, candidates: list[int], program: Program, config: RunConfig
) -> Restored:
    """Restore the newest whole one of some checkpoints.

    Raises:
      UserError: all are damaged.
    """
    causes = []
    for candidate in candidates:
        try:
            restored = reader.restore(
                program.state,
                step=candidate,
                saved_as=lambda record: state_as_saved(record, config, program),
            )
        except UserError as error:
            causes.append(str(error))
        else:
            assert restored is not None, "it is among the saved steps"
            return restored
    raise UserError("\n".join(causes))


def _at(saved: TrainState, step: int, metrics: StepMetrics, skipped: int) -> TrainState:
    """Return a saved state with the clock of another step, so many skipped steps later."""
    assert saved.spikes is not None
    assert metrics.spikes is not None
    told, size = metrics.spikes, saved.spikes.losses.shape[0]
    counters = saved._replace(decoder=None, optimizer=None, carried=[])  # type: ignore[arg-type]

    def moved(counters: TrainState) -> TrainState:
        empty = new_window(size)
        assert counters.spikes is not None
        assert empty is not None
        window = counters.spikes._replace(
            skips=empty.skips,
            spikes=jnp.int32(told.spikes),
            roll_backs=jnp.int32(told.roll_backs + 1),
        )
        return counters._replace(
            step=jnp.int32(step),
            token_hash=jnp.asarray(metrics.token_hash),
            skipped_in_row=jnp.int32(0),
            skipped=counters.skipped + skipped,
            spikes=window,
        )

    shardings = jax.tree.map(lambda leaf: leaf.sharding, counters)
    new: TrainState = jax.jit(moved, out_shardings=shardings)(counters)
    return new._replace(decoder=saved.decoder, optimizer=saved.optimizer, carried=saved.carried)
