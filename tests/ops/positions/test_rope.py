"""Rotations: relative, norm-preserving, in both layouts, of all or some numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.positions.rope import RopePosition
from maxlm.config.positions.scaling import YarnScaling
from maxlm.ops.positions.rope import rotate, rotation

LENGTH = 4096


def turn(x, position, at):
    """Return a vector (H,) turned to a position."""
    x = jnp.asarray(x, jnp.float32)[None, None, None]
    angles = rotation(position, x.shape[-1], jnp.full((1, 1), at), LENGTH)
    return np.asarray(rotate(x, *angles, position.layout))[0, 0, 0]


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("rotary_dim", [None, 6])
def test_pairs_are_complex_numbers_that_turn(layout, rotary_dim):
    position = RopePosition(theta=100.0, layout=layout, rotary_dim=rotary_dim)
    x, turned = np.random.default_rng(0).normal(size=16), rotary_dim or 16
    pairs = [
        (i, i + turned // 2) if layout == "half" else (2 * i, 2 * i + 1) for i in range(turned // 2)
    ]
    want = x.copy()
    for i, (one, other) in enumerate(pairs):
        z = complex(x[one], x[other]) * np.exp(1j * 7 * 100.0 ** (-2 * i / turned))
        want[one], want[other] = z.real, z.imag
    np.testing.assert_allclose(turn(x, position, 7), want, rtol=1e-5, atol=1e-6)


def test_scores_depend_on_distance_alone():
    q, k = np.random.default_rng(0).normal(size=(2, 16))

    def score(q_position, k_position):
        return turn(q, RopePosition(), q_position) @ turn(k, RopePosition(), k_position)

    np.testing.assert_allclose(score(7, 3), score(104, 100), rtol=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_the_attention_factor_stretches_what_is_turned_and_nothing_else():
    scaling = YarnScaling(factor=8.0, original_length=64, attention_factor=3.0)
    x = np.random.default_rng(1).normal(size=16)
    got = turn(x, RopePosition(rotary_dim=8, scaling=scaling), 5)
    np.testing.assert_allclose(np.linalg.norm(got[:8]), 3 * np.linalg.norm(x[:8]), rtol=1e-5)
    np.testing.assert_array_equal(got[8:], x[8:].astype(np.float32))
