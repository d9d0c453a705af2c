"""The chunked, vocabulary-parallel loss against the plain formula in fp64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from maxlm.jax_versions import vary_over
from maxlm.ops.cross_entropy import LogitRule, LossOptions, cross_entropy


def plain(x, output, targets, weights, options):
    with jax.enable_x64(True):
        logits = jnp.asarray(np.asarray(x, np.float64)) @ jnp.asarray(
            np.asarray(output, np.float64)
        )
        lse = jax.nn.logsumexp(logits, axis=-1)
        target = jnp.take_along_axis(logits, jnp.asarray(targets)[:, None], axis=1)[:, 0]
        smoothing = options.label_smoothing
        losses = (
            lse - (1 - smoothing) * target - smoothing * logits.mean(-1) + options.z_loss * lse**2
        )
        return float((weights * losses).sum()), float((weights * (lse - target)).sum())


def sharded(options, num_devices):
    mesh = Mesh(np.asarray(jax.devices()[:num_devices]), ("tensor",))
    specs = (P(), P(None, "tensor"), P(), P())

    def program(x, output, targets, weights):
        # As after `enter`: equal on all devices, but typed as varying, so that partial gradients
        # are summed.
        return cross_entropy(vary_over(x, ("tensor",)), output, targets, weights, options)

    return jax.jit(jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=P()))


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("chunk_tokens", [7, 100])
@pytest.mark.parametrize(("z_loss", "label_smoothing"), [(0.0, 0.0), (1e-2, 0.0), (1e-2, 0.1)])
def test_loss_and_gradients(num_devices, chunk_tokens, z_loss, label_smoothing):
    options = LossOptions(z_loss, label_smoothing, chunk_tokens)
    rng = np.random.default_rng(0)
    x, output = (
        rng.normal(size=(17, 6)).astype(np.float32),
        rng.normal(size=(6, 24)).astype(np.float32),
    )
    targets, weights = (
        rng.integers(0, 24, 17).astype(np.int32),
        (rng.random(17) > 0.3).astype(np.float32),
    )
    run = sharded(options, num_devices)
    # Three times the objective: the gradients saved by the forward pass must be scaled by what
    # comes back.
    scaled = lambda x, output: tuple(3 * out for out in run(x, output, targets, weights))  # noqa: E731
    (objective, nats), (d_x, d_output) = _value_and_gradients(scaled, x, output)
    want_objective, want_nats = plain(x, output, targets, weights, options)
    np.testing.assert_allclose(objective, 3 * want_objective, rtol=1e-5)
    np.testing.assert_allclose(nats, 3 * want_nats, rtol=1e-5)
    direction = rng.normal(size=x.shape).astype(np.float32)
    slope = _slope(
        lambda h: plain(x.astype(np.float64) + h * direction, output, targets, weights, options)[0]
    )
    np.testing.assert_allclose(np.vdot(d_x, direction), 3 * slope, rtol=1e-4)
    direction = rng.normal(size=output.shape).astype(np.float32)
    slope = _slope(
        lambda h: plain(x, output.astype(np.float64) + h * direction, targets, weights, options)[0]
    )
    np.testing.assert_allclose(np.vdot(d_output, direction), 3 * slope, rtol=1e-4)


def test_evaluation_gives_the_same_loss_as_training():
    options = LossOptions(chunk_tokens=5)
    rng = np.random.default_rng(1)
    x, output = (
        rng.normal(size=(12, 6)).astype(np.float32),
        rng.normal(size=(6, 8)).astype(np.float32),
    )
    targets, weights = rng.integers(0, 8, 12).astype(np.int32), np.ones(12, np.float32)
    run = sharded(options, 2)
    forward = run(x, output, targets, weights)[0]
    trained = jax.value_and_grad(lambda x: run(x, output, targets, weights)[0])(jnp.asarray(x))[0]
    assert float(forward) == float(trained)


def _value_and_gradients(function, x, output):
    (objective, nats), pullback = jax.vjp(function, jnp.asarray(x), jnp.asarray(output))
    return (objective, nats), pullback((jnp.ones_like(objective), jnp.zeros_like(nats)))


def _slope(function, h=1e-4):
    return (function(h) - function(-h)) / (2 * h)


def numpy_oracle(
    x, output, targets, weights, *, num_ids, z_loss, label_smoothing, scale=1.0, softcap=np.inf
):
    """Return objective, nats and the gradients of the objective in fp64, on the first `num_ids`
    columns alone.
    """
    x, kept, weights = (
        x.astype(np.float64),
        output[:, :num_ids].astype(np.float64),
        weights.astype(np.float64),
    )
    logits = scale * (x @ kept)
    steepness = np.full_like(logits, scale)
    if softcap < np.inf:
        steepness /= np.cosh(logits / softcap) ** 2
        logits = softcap * np.tanh(logits / softcap)
    peak = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - peak).sum(axis=1)
    lse = np.log(total) + peak[:, 0]
    rows = np.arange(len(targets))
    nats = lse - logits[rows, targets]
    wanted = np.full_like(logits, label_smoothing / num_ids)
    wanted[rows, targets] += 1 - label_smoothing
    objective = (lse - (wanted * logits).sum(axis=1) + z_loss * lse**2) @ weights
    d_logits = np.exp(logits - lse[:, None]) * (1 + 2 * z_loss * lse)[:, None] - wanted
    d_logits *= weights[:, None] * steepness
    d_output = np.zeros(output.shape)
    d_output[:, :num_ids] = x.T @ d_logits
    return objective, nats @ weights, d_logits @ kept.T, d_output


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("num_ids", [24, 21, 13, 1])  # 13 and 1 leave devices without any id
@pytest.mark.parametrize(("z_loss", "label_smoothing"), [(0.0, 0.0), (1e-2, 0.1)])
def test_columns_that_fill_the_vocabulary_up_are_as_if_they_were_not_there(
    num_devices, num_ids, z_loss, label_smoothing
):
    rng = np.random.default_rng(2)
    x, output = (
        rng.normal(size=(17, 6)).astype(np.float32),
        rng.normal(size=(6, 24)).astype(np.float32),
    )
    output[:, num_ids:] *= 50  # would dominate every sum
    targets, weights = (
        rng.integers(0, num_ids, 17).astype(np.int32),
        (rng.random(17) > 0.3).astype(np.float32),
    )
    run = sharded(LossOptions(z_loss, label_smoothing, 7, num_ids=num_ids), num_devices)
    got, gradients = _value_and_gradients(
        lambda x, output: run(x, output, targets, weights), x, output
    )
    want = numpy_oracle(
        x, output, targets, weights, num_ids=num_ids, z_loss=z_loss, label_smoothing=label_smoothing
    )
    for value, expected in zip((*got, *gradients), want, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(gradients[1][:, num_ids:], 0)
    forward = run(x, output, targets, weights)
    np.testing.assert_allclose(forward, want[:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize(("scale", "softcap"), [(0.25, None), (1.5, 2.0)])
def test_logits_with_a_factor_and_a_cap(num_devices, scale, softcap):
    """z-loss and smoothing see the capped logits, and columns that are no ids stay outside."""
    rng = np.random.default_rng(3)
    x, output = (
        rng.normal(size=(17, 6)).astype(np.float32),
        rng.normal(size=(6, 24)).astype(np.float32),
    )
    targets, weights = (
        rng.integers(0, 21, 17).astype(np.int32),
        (rng.random(17) > 0.3).astype(np.float32),
    )
    options = LossOptions(1e-2, 0.1, 7, logit_rule=LogitRule(scale, softcap), num_ids=21)
    run = sharded(options, num_devices)
    got, gradients = _value_and_gradients(
        lambda x, output: run(x, output, targets, weights), x, output
    )
    about = {"num_ids": 21, "z_loss": 1e-2, "label_smoothing": 0.1, "scale": scale}
    want = numpy_oracle(x, output, targets, weights, **about, softcap=softcap or np.inf)
    for value, expected in zip((*got, *gradients), want, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


def test_a_target_that_is_no_id_is_not_learned_unnoticed():
    x, output = np.ones((2, 3), np.float32), np.ones((3, 8), np.float32)
    run = sharded(LossOptions(num_ids=5), 1)
    objective, nats = run(x, output, np.array([1, 6], np.int32), np.ones(2, np.float32))
    assert np.isposinf(objective)
    assert np.isposinf(nats)
