"""One training step: a pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from maxlm.config.schema import SpikesConfig
from maxlm.data.token_hash import advance
from maxlm.models.decoder import Decoder
from maxlm.optim.update import update
from maxlm.train.faults.spikes import SpikeReport, watch
from maxlm.train.loss.gradients import Batch, Sums
from maxlm.train.state import TrainState

NO_SPIKES = SpikesConfig(kind="none")


class StepMetrics(NamedTuple):
    """What a step reports: scalars, the same on every device; of `layers`, see
    `Decoder.layer_metrics`; and of `spikes`, if they are looked for.
    """

    sums: Sums
    layers: dict[str, dict[str, jax.Array]]
    learning_rate: jax.Array
    gradient_norm: jax.Array
    parameter_norm: jax.Array
    update_ratio: jax.Array
    token_hash: jax.Array
    skipped_in_row: jax.Array
    skipped: jax.Array
    spikes: SpikeReport | None = None


def make_train_step(
    compute_gradients: Callable[..., tuple[Decoder, Sums]],
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    spikes: SpikesConfig = NO_SPIKES,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """Return train_step(state, batch) -> (state, metrics), to be jitted.

    A step whose loss or gradient is not finite leaves parameters and optimizer as they were and is
    counted; so does a spike, if `spikes` says so.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        gradients, sums = compute_gradients(state.decoder, batch, state.carried)
        gradient_norm = optax.tree.norm(gradients)
        done = finite = jnp.isfinite(gradient_norm) & jnp.isfinite(sums.objective)
        window, report = state.spikes, None
        if window is not None:
            numbers = (state.step, sums.objective, gradient_norm)
            done, window, report = watch(window, *numbers, finite=finite, config=spikes)
        rate = learning_rate(state.step)
        directions, slots = update(optimizer, gradients, state.optimizer, state.decoder, done)
        updates = jax.tree.map(lambda direction: -rate * direction, directions)
        moved: Decoder = optax.apply_updates(state.decoder, updates)
        moved = moved.after_step(state.decoder, sums.reports)
        decoder = jax.tree.map(lambda new, old: jnp.where(done, new, old), moved, state.decoder)
        skipped = 1 - done.astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            decoder=decoder,
            optimizer=slots,
            token_hash=advance(state.token_hash, sums.token_hash),
            skipped_in_row=(state.skipped_in_row + 1) * skipped,
            skipped=state.skipped + skipped,
            carried=jax.tree.map(
                lambda new, old: jnp.where(done, new, old), sums.carried, state.carried
            ),
            spikes=window,
        )
        # Of the new parameters: reading the old ones after the update would make the compiler keep
        # a copy of them.
        parameter_norm = optax.tree.norm(decoder)
        metrics = StepMetrics(
            sums=sums._replace(reports=[], carried=[]),
            layers=state.decoder.layer_metrics(sums.reports),
            learning_rate=rate,
            gradient_norm=gradient_norm,
            parameter_norm=parameter_norm,
            update_ratio=optax.tree.norm(updates) / parameter_norm,
            token_hash=new_state.token_hash,
            skipped_in_row=new_state.skipped_in_row,
            skipped=new_state.skipped,
            spikes=report,
        )
        return new_state, metrics

    return train_step
