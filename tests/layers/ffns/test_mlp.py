"""Nonlinearities against their formulas in fp64, far into their clamps, with their slopes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.layers.ffns.mlp import GATED, PLAIN, activate

GRID = np.linspace(-12, 12, 97) + 0.01  # kinks lie beside it


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def gelu_exact(z):
    return z * np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))(z)


def gelu_tanh(z):
    return z * sigmoid(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))


def clamped(gate, hidden):
    gate, hidden = (
        np.where(gate > 7, 7, gate),
        np.where(np.abs(hidden) > 7, np.sign(hidden) * 7, hidden),
    )
    return gate * sigmoid(1.702 * gate) * (hidden + 1)


FORMULAS = {
    "swiglu": lambda gate, hidden: gate * sigmoid(gate) * hidden,
    "swiglu_clamped": clamped,
    "geglu_tanh": lambda gate, hidden: gelu_tanh(gate) * hidden,
    "geglu_exact": lambda gate, hidden: gelu_exact(gate) * hidden,
    "relu": lambda gate, hidden: np.where(hidden > 0, hidden, 0),
    "relu2": lambda gate, hidden: np.where(hidden > 0, hidden**2, 0),
    "gelu_tanh": lambda gate, hidden: gelu_tanh(hidden),
    "gelu_exact": lambda gate, hidden: gelu_exact(hidden),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_slopes(name):
    gate, hidden = (grid.ravel() for grid in np.meshgrid(GRID, GRID))
    formula = FORMULAS[name]

    def total(gate, hidden):
        y = activate(name, hidden, gate if name in GATED else None)
        return y.sum(), y

    arrays = jnp.asarray(gate, jnp.float32), jnp.asarray(hidden, jnp.float32)
    (_, y), slopes = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(*arrays)
    np.testing.assert_allclose(y, formula(gate, hidden), rtol=1e-5, atol=1e-5)
    steps = [(1e-6, 0.0), (0.0, 1e-6)]
    for got, (of_gate, of_hidden) in zip(slopes, steps, strict=True):
        ahead = formula(gate + of_gate, hidden + of_hidden)
        behind = formula(gate - of_gate, hidden - of_hidden)
        np.testing.assert_allclose(got, (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-4)


def test_all_are_there():
    assert {*PLAIN, *GATED} == FORMULAS.keys()
