"""Rotary positions: relative, norm-preserving, and stretched as Llama 3 stretches them."""

import jax.numpy as jnp
import numpy as np

from maxlm.config.rope import RopePosition, RopeScaling
from maxlm.ops.rope import frequencies, rotate, rotation


def test_scores_depend_on_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def score(q_position, k_position):
        positions = lambda p: jnp.full((1, 1), p)  # noqa: E731
        turned_q = rotate(q, *rotation(RopePosition(), 16, positions(q_position)))
        turned_k = rotate(k, *rotation(RopePosition(), 16, positions(k_position)))
        return float((turned_q * turned_k).sum())

    np.testing.assert_allclose(score(7, 3), score(104, 100), rtol=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_first_pair_turns_by_the_position():
    x = jnp.zeros((1, 1, 1, 8)).at[..., 0].set(1.0)
    turned = rotate(x, *rotation(RopePosition(), 8, jnp.full((1, 1), 2)))
    np.testing.assert_allclose(turned[0, 0, 0, [0, 4]], [np.cos(2.0), np.sin(2.0)], rtol=1e-6)


def test_llama3_scaling_keeps_high_frequencies_and_divides_low_ones():
    plain = frequencies(RopePosition(theta=500_000.0), 128)
    scaled = frequencies(RopePosition(theta=500_000.0, scaling=RopeScaling(factor=8.0)), 128)
    wavelength = 2 * np.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192
    np.testing.assert_array_equal(scaled[short], plain[short])
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    between = ~short & ~long
    assert between.any()
    assert np.all((scaled[between] > plain[between] / 8) & (scaled[between] < plain[between]))
