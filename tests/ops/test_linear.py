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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("shapes", "contract"), SHAPES)
def test_gradients_of_the_bare_product_are_those_of_autodiff(shapes, contract, dtype):
    x, weight, bias = arrays(shapes, contract, dtype)
    g = jnp.ones_like(jnp.tensordot(x, weight, contract)) * bias
    _, transpose = jax.vjp(lambda *inputs: linear(*inputs, contract=contract), x, weight)
    _, wanted = jax.vjp(lambda x, w: jnp.tensordot(x, w, contract), x, weight)
    for own, want in zip(transpose(g), wanted(g), strict=True):
        assert own.dtype == dtype
        tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
        own, want = own.astype(jnp.float32), want.astype(jnp.float32)
        np.testing.assert_allclose(own, want, atol=tolerance * abs(want).max())


@pytest.mark.parametrize(("platform", "transposes"), [("cpu", 0), ("tpu", 1), ("cuda", 1)])
def test_the_gradient_of_heads_is_one_product_on_a_cpu(platform, transposes):
    """Elsewhere it is what autodiff makes of it: a product, and a transpose of its result."""

    def gradient(x, weight, g):
        return jax.vjp(lambda weight: linear(x, weight), weight)[1](g)

    x, weight, g = jnp.ones((5, 16)), jnp.ones((16, 2, 7)), jnp.ones((5, 2, 7))
    text = jax.jit(gradient).trace(x, weight, g).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.transpose") == transposes


@pytest.mark.parametrize(("platform", "barriers"), [("tpu", 2), ("cpu", 0), ("cuda", 0)])
def test_computed_once_is_a_barrier_in_both_passes_on_tpus_alone(platform, barriers):
    def run(x, g):
        y, transpose = jax.vjp(lambda x: computed_once(jnp.tanh(x)), x)
        return y, transpose(g)

    x = jnp.ones((2, 3))
    text = jax.jit(run).trace(x, x).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("optimization_barrier") == barriers
