"""Spikes against the definition in float64, and the steps that are to be none."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.schema import SpikesConfig
from maxlm.train.faults.spikes import fit_window, in_order, new_window, steps_as_saved, watch

RULE = SpikesConfig(kind="skip", window=16, min_steps=10, sigmas=6.0)


LONGEST = 400


def judge(losses, norms, config=RULE):
    """Judge steps one after the other; return what was done, what is a spike, limits, the window."""
    missing = -len(losses) % LONGEST  # one length, one program; what is not finite changes nothing
    padded = [np.pad(column, (0, missing), constant_values=np.nan) for column in (losses, norms)]
    window, told = _judge(*padded, config)
    return window, jax.tree.map(lambda column: np.asarray(column)[: len(losses)], told)


@functools.partial(jax.jit, static_argnames="config")
def _judge(losses, norms, config):
    def one(window, numbers):
        step, loss, norm = numbers
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        done, window, report = watch(window, step, loss, norm, finite=finite, config=config)
        return window, (done, report)

    steps = jnp.arange(losses.shape[0])
    return jax.lax.scan(one, new_window(config.window), (steps, losses, norms))


def by_definition(losses, norms, config=RULE):
    """Yield (done, spike, loss limit, norm limit) from lists of what was done before, in float64."""
    kept = []
    for loss, norm in zip(losses.astype(np.float64), norms.astype(np.float64), strict=True):
        finite = math.isfinite(loss) and math.isfinite(norm)
        limits = [math.inf, math.inf]
        if len(kept) >= config.min_steps:
            for number, column in enumerate(np.array(kept[-config.window :]).T):
                median = np.median(column)
                sigma = max(
                    1.4826 * np.median(np.abs(column - median)),
                    (np.quantile(column, 0.9) - median) / 1.2816,
                )
                least = 1e-3 * (abs(median) if number == 0 else 1)
                limits[number] = median + config.sigmas * max(sigma, least)
        spike = finite and (loss > limits[0] or math.log(norm) > limits[1])
        done = finite and not spike
        if done:
            kept.append((loss, math.log(norm)))
        yield done, spike, limits[0], math.exp(limits[1]) if limits[1] < 700 else math.inf


def series(seed, steps=400):
    """A loss that falls steeply and then slowly, with noise, spikes and what is not finite."""
    rng = np.random.default_rng(seed)
    time = np.arange(steps)
    losses = 3 + 8 * np.exp(-time / 20) + 0.05 * rng.standard_normal(steps)
    norms = np.exp(0.2 * rng.standard_normal(steps) - time / 300)
    for place in rng.choice(np.arange(5, steps), 25, replace=False):
        losses[place] += rng.uniform(0, 6)
    for place in rng.choice(np.arange(5, steps), 25, replace=False):
        norms[place] *= rng.uniform(1, 100)
    losses[rng.choice(steps, 5)] = np.nan
    norms[rng.choice(steps, 5)] = np.inf
    return losses.astype(np.float32), norms.astype(np.float32)


def test_decisions_limits_and_window_are_those_of_the_definition():
    seen = 0
    for seed in range(10):
        losses, norms = series(seed)
        window, (done, report) = jax.device_get(judge(losses, norms))
        expected = list(by_definition(losses, norms))
        want_done, want_spike, loss_limits, norm_limits = (
            np.array(column) for column in zip(*expected, strict=True)
        )
        np.testing.assert_array_equal(done, want_done)
        np.testing.assert_array_equal(report.spike, want_spike)
        np.testing.assert_allclose(report.loss_limit, loss_limits, rtol=1e-5)
        np.testing.assert_allclose(report.norm_limit, norm_limits, rtol=1e-4)
        assert window.entered == want_done.sum()
        assert window.spikes == want_spike.sum()
        recent = [(~want_done[max(end - 15, 0) : end + 1]).sum() for end in range(len(losses))]
        np.testing.assert_array_equal(report.recent, recent)
        np.testing.assert_array_equal(in_order(window)["losses"], losses[want_done][-16:])
        seen += want_spike.sum()
    assert seen > 100


def test_no_fall_and_no_steady_growth_is_a_spike():
    """A warm-up: the loss falls by a fifth a step, the norm grows by half a step; and both with
    noise of a hundredth.
    """
    rng, time = np.random.default_rng(0), np.arange(60)
    losses = (11 * 0.8**time + 2).astype(np.float32)
    norms = (1e-3 * 1.5**time * np.exp(0.01 * rng.standard_normal(60))).astype(np.float32)
    _, (done, _) = judge(losses, norms)
    assert done.all()


def test_one_batch_again_and_again_is_no_spike_for_its_rounding():
    losses = np.float32(2) + np.float32(1e-6) * np.arange(100, dtype=np.float32)
    _, (done, _) = judge(losses, np.zeros_like(losses))
    assert done.all()


def test_ordinary_noise_makes_no_spike_in_4000_steps():
    rng, config = np.random.default_rng(1), RULE.model_copy(update={"window": 128, "min_steps": 64})
    losses = (3 + 0.1 * rng.standard_normal(4000)).astype(np.float32)
    norms = np.exp(0.4 * rng.standard_normal(4000)).astype(np.float32)
    window, _ = judge(losses, norms, config=config)
    assert window.spikes == 0


def test_what_stays_above_is_skipped_for_ever_or_becomes_usual():
    """A level that rises: `skip` never takes it up, `watch` does nothing, and ends to tell of it."""
    rng = np.random.default_rng(0)
    losses = (3 + 0.01 * rng.standard_normal(80)).astype(np.float32)
    losses[40:] += 1
    norms = np.ones(80, np.float32)
    _, (done, _) = judge(losses, norms)
    assert done[:40].all()
    assert not done[40:].any()
    watching = RULE.model_copy(update={"kind": "watch"})
    _, (done, report) = judge(losses, norms, config=watching)
    assert done.all()
    # Two of sixteen are the upper tenth, and with it the usual: heavy tails look like this.
    assert report.spike[40:42].all()
    assert not report.spike[42:].any()


def test_a_saved_window_is_kept_if_it_is_of_the_same_size():
    saved = new_window(16)
    declared = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), new_window(16)
    )
    other = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), new_window(8)
    )
    assert fit_window(saved, declared) is saved
    assert fit_window(saved, None) is None
    assert fit_window(saved, other).losses.shape == (8,)
    assert fit_window(None, other).entered == 0


@pytest.mark.parametrize(
    ("spikes", "steps"),
    [(None, 0), ({"kind": "none", "window": 128}, 0), ({"kind": "watch", "window": 32}, 32)],
)
def test_a_record_says_how_large_its_window_is(spikes, steps):
    settings = {} if spikes is None else {"train": {"spikes": spikes}}
    assert steps_as_saved({"config": settings}) == steps
