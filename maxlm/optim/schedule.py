"""Learning rate over steps: linear warm-up to the peak, then one of five shapes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from maxlm.config.schema import ScheduleConfig

Shape = Callable[[jax.Array, ScheduleConfig, int], jax.Array]


def _constant(step: jax.Array, schedule: ScheduleConfig, total_steps: int) -> jax.Array:
    del schedule, total_steps
    return jnp.ones_like(step)


def _linear(step: jax.Array, schedule: ScheduleConfig, total_steps: int) -> jax.Array:
    return 1 - (1 - schedule.final_fraction) * _progress(step, schedule.warmup_steps, total_steps)


def _cosine(step: jax.Array, schedule: ScheduleConfig, total_steps: int) -> jax.Array:
    """Half a cosine (arXiv:1608.03983)."""
    falling = 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, schedule.warmup_steps, total_steps)))
    return schedule.final_fraction + (1 - schedule.final_fraction) * falling


def _wsd(step: jax.Array, schedule: ScheduleConfig, total_steps: int) -> jax.Array:
    """Warm-up, stable, decay: constant until the last `cooldown_steps`, then linear
    (arXiv:2404.06395).
    """
    return 1 - (1 - schedule.final_fraction) * _progress(
        step, total_steps - schedule.cooldown_steps, total_steps
    )


def _inverse_sqrt(step: jax.Array, schedule: ScheduleConfig, total_steps: int) -> jax.Array:
    """1 / sqrt(step), scaled to be 1 at the end of the warm-up (arXiv:1706.03762)."""
    del total_steps
    start = float(max(schedule.warmup_steps, 1))
    return jnp.sqrt(start / jnp.maximum(step, start))


SHAPES: dict[str, Shape] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _wsd,
    "inverse_sqrt": _inverse_sqrt,
}


def make_schedule(
    schedule: ScheduleConfig, *, peak: float, num_steps: int
) -> Callable[[jax.Array], jax.Array]:
    """Return learning_rate(step): what the update of step number `step`, counted from 0, is scaled
    with.

    Warm-up step s of W uses peak (s + 1) / W, so that the first step already learns and step W - 1
    has the peak.

    Args:
      schedule: the shape and its lengths.
      peak: `optimizer.learning_rate`.
      num_steps: where the decay ends unless `schedule.total_steps` says otherwise.
    """
    total_steps = schedule.total_steps or num_steps

    def learning_rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warm = (step + 1) / max(schedule.warmup_steps, 1)
        shape = SHAPES[schedule.kind](step, schedule, total_steps)
        return peak * jnp.where(step < schedule.warmup_steps, warm, shape)

    return learning_rate


def _progress(step: jax.Array, start: int, end: int) -> jax.Array:
    """Return 0 at `start`, 1 at the last step before `end` and after."""
    return jnp.clip((step - start + 1) / max(end - start, 1), 0.0, 1.0)
