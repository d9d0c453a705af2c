"""Learning rates at the steps where they are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.schema import ScheduleConfig
from maxlm.optim.schedule import make_schedule


def rates(num_steps=100, **schedule):
    function = make_schedule(ScheduleConfig(**schedule), peak=2.0, num_steps=num_steps)
    return np.asarray(function(jnp.arange(num_steps)))


def test_warmup_reaches_the_peak_at_its_last_step():
    warm = rates(kind="constant", warmup_steps=4)
    np.testing.assert_allclose(warm[:6], [0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_decay_ends_at_the_final_fraction(kind):
    rate = rates(kind=kind, warmup_steps=10, final_fraction=0.25)
    np.testing.assert_allclose(rate[-1], 0.5, rtol=1e-6)
    assert np.all(np.diff(rate[10:]) < 0)
    np.testing.assert_allclose(rate[54], 1.25, rtol=0.02)  # half way


def test_total_steps_moves_the_end():
    rate = rates(kind="linear", total_steps=50, final_fraction=0.0)
    assert rate[48] > 0
    assert np.all(rate[49:] == 0)


def test_wsd_is_constant_until_the_cooldown():
    rate = rates(kind="wsd", cooldown_steps=20, final_fraction=0.0)
    assert np.all(rate[:80] == 2.0)
    np.testing.assert_allclose(rate[89], 1.0, rtol=1e-5)
    assert rate[99] == 0


def test_inverse_sqrt_halves_when_steps_quadruple():
    rate = rates(kind="inverse_sqrt", warmup_steps=16)
    np.testing.assert_allclose(rate[16], 2.0)
    np.testing.assert_allclose(rate[64], 1.0)
