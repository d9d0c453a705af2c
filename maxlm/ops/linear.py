"""Matrix products of tokens with weights."""

from __future__ import annotations

import jax
from jax import lax


def linear(x: jax.Array, weight: jax.Array, *, contract: int = 1) -> jax.Array:
    """Multiply the last `contract` dimensions of x with the first ones of the weight, all tokens as
    rows of one matrix.

    The same as an einsum over (B, T, D), but its gradient too is a product of two matrices: with B
    and T apart, the CPU's compiler transposes the output's gradient, and everything that is fused
    into it, before multiplying. The weight goes in as it was gathered: a reshaped copy would be
    kept for the backward pass.
    """
    rows = x.reshape(-1, *weight.shape[:contract])
    summed = tuple(range(1, 1 + contract)), tuple(range(contract))
    y = lax.dot_general(rows, weight, (summed, ((), ())))
    return y.reshape(*x.shape[: x.ndim - contract], *weight.shape[contract:])
