"""Tell spikes of the loss and of the gradient norm from a window of steps, on the devices.

A step is a spike if its loss, or the logarithm of its gradient norm, lies more than `sigmas` robust
standard deviations above the median of the window,

    median(x) + sigmas * max(1.4826 * MAD(x), (q90(x) - median(x)) / 1.2816, floor),
    MAD(x) = median(|x - median(x)|),   q90: what nine tenths lie below

Both are the standard deviation of a normal distribution. Gradients of small batches are far from
one: some in a hundred have several times the usual norm, since one document of theirs is odd. MAD
does not see that, q90 sees how heavy the upper tail is. Only what is above counts: a
loss that falls steeply while the learning rate warms up is none. Neither is a norm that grows
steadily: the window grows with it, and at any steady rate, in the logarithm, the newest step is
at most 1.35 deviations above the median. What is skipped never enters the window, so a run of spikes does
not become what is usual.

All numbers are sums over all devices already, so every device, on every mesh, decides alike, and
the host is not asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import SpikesConfig

NORMAL = 1.4826
"""Standard deviations of a normal distribution in its MAD."""
UPPER, UPPER_NORMAL = 0.9, 1.2816
"""A quantile, and how many standard deviations of a normal distribution it lies above the median."""
FLOOR = 1e-3
"""Least standard deviation, relative to the median: below it lies rounding, such as that of steps
that all read one batch."""
_LEAST_NORM = 1e-30  # a gradient of zeros has no logarithm


class SpikeWindow(NamedTuple):
    """What spikes are told from: a part of the train state.

    Attributes:
      losses: fp32[W], of the steps that entered, in a ring.
      log_norms: fp32[W], logarithms of their gradient norms.
      entered: int32, how many entered since the run began.
      skips: int32[W], whether each of the last steps was skipped, or a spike, in a ring.
      spikes: int32, since the run began.
      roll_backs: int32, likewise.
    """

    losses: jax.Array
    log_norms: jax.Array
    entered: jax.Array
    skips: jax.Array
    spikes: jax.Array
    roll_backs: jax.Array


class SpikeReport(NamedTuple):
    """What a step says of spikes: scalars.

    Attributes:
      spike: whether it was one.
      loss_limit: what its loss was compared with, infinite before any is judged.
      norm_limit: what its gradient norm was compared with.
      recent: skipped steps, or spikes, of the last W.
      spikes: since the run began.
      roll_backs: likewise.
    """

    spike: jax.Array
    loss_limit: jax.Array
    norm_limit: jax.Array
    recent: jax.Array
    spikes: jax.Array
    roll_backs: jax.Array


def new_window(steps: int) -> SpikeWindow | None:
    """Return an empty window of so many steps; None for none."""
    if not steps:
        return None
    zeros, zero = jnp.zeros((steps,), jnp.float32), jnp.zeros((), jnp.int32)
    return SpikeWindow(zeros, zeros, zero, jnp.zeros((steps,), jnp.int32), zero, zero)


def declare_window(steps: int, mesh: Mesh) -> SpikeWindow | None:
    """Return a window of so many steps as `jax.ShapeDtypeStruct`s: every device has all of it."""
    whole = NamedSharding(mesh, P())
    declared: SpikeWindow | None = jax.tree.map(
        lambda leaf: leaf.update(sharding=whole), jax.eval_shape(lambda: new_window(steps))
    )
    return declared


def steps_as_saved(record: Mapping[str, Any]) -> int:
    """Return the steps in the window of a checkpoint, 0 for none, by its record."""
    saved = record.get("config", {}).get("train", {}).get("spikes")
    return 0 if saved is None or saved["kind"] == "none" else int(saved["window"])


def fit_window(saved: SpikeWindow | None, declared: SpikeWindow | None) -> SpikeWindow | None:
    """Return a saved window, or a new one where another is declared."""
    if declared is None or (saved and saved.losses.shape == declared.losses.shape):
        return saved if declared else None
    steps, shardings = (
        declared.losses.shape[0],
        jax.tree.map(lambda leaf: leaf.sharding, declared),
    )
    window: SpikeWindow = jax.jit(lambda: new_window(steps), out_shardings=shardings)()
    return window


def in_order(window: SpikeWindow) -> dict[str, list[float]]:
    """Return the losses and gradient norms in a window, oldest first, as JSON can hold them."""
    held = jax.device_get(window)
    entered, size = int(held.entered), len(held.losses)
    places = [number % size for number in range(max(entered - size, 0), entered)]
    return {
        "losses": [float(held.losses[place]) for place in places],
        "gradient_norms": [math.exp(held.log_norms[place]) for place in places],
    }


def watch(
    window: SpikeWindow,
    step: jax.Array,
    loss: jax.Array,
    norm: jax.Array,
    *,
    finite: jax.Array,
    config: SpikesConfig,
) -> tuple[jax.Array, SpikeWindow, SpikeReport]:
    """Judge a step; inside a jit.

    Args:
      window: of the steps before.
      step: its number.
      loss: its loss.
      norm: its gradient's norm.
      finite: whether both are.
      config: the rule.

    Returns:
      whether the step is to be done, the window with it in it, and what to report.
    """
    log_norm = jnp.log(jnp.maximum(norm, _LEAST_NORM))
    # Both at once: half the programs to compile.
    median_2, sigma_2 = _median_and_sigma(
        jnp.stack([window.losses, window.log_norms]), window.entered
    )
    floor_2 = FLOOR * jnp.stack([jnp.abs(median_2[0]), jnp.float32(1)])
    limit_2 = median_2 + config.sigmas * jnp.maximum(sigma_2, floor_2)
    judged = window.entered >= config.min_steps
    loss_limit, log_norm_limit = jnp.where(judged, limit_2, math.inf)
    spike = finite & ((loss > loss_limit) | (log_norm > log_norm_limit))
    accepted = finite & ~spike if config.kind == "skip" else finite
    size = window.losses.shape[0]
    place = window.entered % size
    marked = ~finite | spike
    new = SpikeWindow(
        jnp.where(accepted, window.losses.at[place].set(loss), window.losses),
        jnp.where(accepted, window.log_norms.at[place].set(log_norm), window.log_norms),
        window.entered + accepted,
        window.skips.at[step % size].set(marked.astype(jnp.int32)),
        window.spikes + spike,
        window.roll_backs,
    )
    report = SpikeReport(
        spike, loss_limit, jnp.exp(log_norm_limit), new.skips.sum(), new.spikes, new.roll_backs
    )
    return accepted, new, report


def _median_and_sigma(values_2W: jax.Array, entered: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the medians of what entered, and the standard deviations that the MADs or the upper
    tails stand for, the larger ones.
    """
    size = values_2W.shape[-1]
    count = jnp.clip(entered, 1, size)

    def in_order(of_2W: jax.Array) -> jax.Array:
        # What did not enter goes behind all that did.
        return jnp.sort(jnp.where(jnp.arange(size) < count, of_2W, math.inf))

    def median(ordered_2W: jax.Array) -> jax.Array:
        return (ordered_2W[:, (count - 1) // 2] + ordered_2W[:, count // 2]) / 2

    ordered_2W = in_order(values_2W)
    middle_2 = median(ordered_2W)
    deviations_2W = in_order(jnp.abs(values_2W - middle_2[:, None]))
    place = UPPER * (count - 1)
    below = jnp.floor(place).astype(jnp.int32)
    share = place - below
    above_2 = ordered_2W[:, jnp.minimum(below + 1, count - 1)]
    upper_2 = (1 - share) * ordered_2W[:, below] + share * above_2
    return middle_2, jnp.maximum(
        NORMAL * median(deviations_2W), (upper_2 - middle_2) / UPPER_NORMAL
    )
