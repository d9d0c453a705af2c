"""How the next token is chosen from logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.decoding.sampling import Sampling, choose

LOGITS = jnp.log(jnp.asarray([[0.5, 0.25, 0.15, 0.1]]))


def draws(sampling, num_ids, logits=LOGITS, count=4000):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.vmap(lambda key: choose(logits, key, sampling, num_ids))(keys))[:, 0]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.0),
        Sampling(1.0),
        Sampling(5.0),
        Sampling(1.0, top_k=3),
        Sampling(1.0, top_p=0.99),
    ],
)
@pytest.mark.parametrize("num_ids", [1, 2, 4])
def test_columns_that_are_no_ids_are_never_chosen(sampling, num_ids):
    filled = jnp.concatenate([LOGITS[:, :num_ids], jnp.full((1, 6), 9.0)], axis=1)
    chosen = draws(sampling, num_ids, filled)
    assert chosen.max() < num_ids
    np.testing.assert_array_equal(chosen, draws(sampling, num_ids, LOGITS[:, :num_ids]))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(1.0, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(1.0, top_p=0.6), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(0.5), np.array([0.25, 0.0625, 0.0225, 0.01]) / 0.345),
    ],
)
def test_tokens_are_chosen_as_often_as_they_should_be(sampling, expected):
    counts = np.bincount(draws(sampling, 4), minlength=4) / 4000
    np.testing.assert_allclose(counts, expected, atol=0.03)
