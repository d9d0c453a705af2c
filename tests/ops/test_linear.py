"""Products with a bias: rounded once in 16 bits, with the gradients of a product in 16 bits; factors
that a TPU writes before it multiplies.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.ops.linear import computed_once, linear

SHAPES = [(((5, 3, 16), (16, 7)), 1), (((5, 3, 16), (16, 2, 7)), 1), (((5, 3, 4, 4), (4, 4, 7)), 2)]


def arrays(shapes, contract, dtype):
    rng = np.random.default_rng(0)
    shapes = (*shapes, shapes[1][contract:])
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def exact(x, weight, bias, contract):
    """Return the sum in fp64, rows of one matrix."""
    x, weight, bias = (np.asarray(array, np.float64) for array in (x, weight, bias))
    return np.tensordot(x, weight, contract) + bias


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("shapes", "contract"), SHAPES)
def test_the_sum_is_rounded_once(shapes, contract, dtype):
    x, weight, bias = arrays(shapes, contract, dtype)
    found = linear(x, weight, 8 * bias, contract=contract)
    wanted = jnp.asarray(exact(x, weight, 8 * bias, contract)).astype(dtype)
    assert found.dtype == dtype
    assert (found != wanted).mean() < 0.02  # fp32 sums that lie between two numbers
    twice = linear(x, weight, contract=contract) + 8 * bias
    assert (twice != wanted).mean() > 0.05, "these numbers do not tell the two apart"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("shapes", "contract"), SHAPES)
def test_gradients(shapes, contract, dtype):
    given = arrays(shapes, contract, dtype)
    rng = np.random.default_rng(1)
    g = jnp.asarray(rng.normal(size=exact(*given, contract).shape), dtype)

    def summed(x, weight, bias):
        product = jnp.tensordot(x, weight, contract, precision="highest")
        return ((product + bias) * g.astype(jnp.float32)).sum()

    wanted = jax.grad(summed, (0, 1, 2))(*(x.astype(jnp.float32) for x in given))
    _, transpose = jax.vjp(lambda *inputs: linear(*inputs, contract=contract), *given)
    for own, want in zip(transpose(g), wanted, strict=True):
        assert own.dtype == dtype
        tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
        np.testing.assert_allclose(own.astype(jnp.float32), want, atol=tolerance * abs(want).max())


@pytest.mark.parametrize(("platform", "barriers"), [("tpu", 2), ("cpu", 0), ("cuda", 0)])
def test_computed_once_is_a_barrier_in_both_passes_on_tpus_alone(platform, barriers):
    def run(x, g):
        y, transpose = jax.vjp(lambda x: computed_once(jnp.tanh(x)), x)
        return y, transpose(g)

    x = jnp.ones((2, 3))
    text = jax.jit(run).trace(x, x).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("optimization_barrier") == barriers
