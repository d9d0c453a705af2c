"""Matrix products of tokens with weights, what is added to them, and what stays out of them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.jax_versions import vary_over, varying_axes
from maxlm.products import einsum_fp32


def linear(
    x: jax.Array, weight: jax.Array, bias: jax.Array | None = None, *, contract: int = 1
) -> jax.Array:
    """Multiply the last `contract` dimensions of x with the first ones of the weight, all tokens as
    rows of one matrix, and add a bias, shaped like the weight's others.

    The same as an einsum over (B, T, D), but its gradient too is a product of two matrices: with B
    and T apart, the CPU's compiler transposes the output's gradient, and everything that is fused
    into it, before multiplying. The weight goes in as it was gathered: a reshaped copy would be
    kept for the backward pass.

    In 16 bits the sum of product and bias is rounded once, as other libraries' is.
    """
    rows = x.reshape(-1, *weight.shape[:contract])
    axes = varying_axes(rows, weight, *(() if bias is None else (bias,)))
    rows, weight = vary_over(rows, axes), vary_over(weight, axes)
    if bias is None:
        y = _product(contract, rows, weight)
    elif x.dtype == jnp.float32:
        y = _product(contract, rows, weight) + bias
    else:
        y = _rounded_once(contract, rows, weight, vary_over(bias, axes))
    return y.reshape(*x.shape[: x.ndim - contract], *weight.shape[contract:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(contract: int, rows: jax.Array, weight: jax.Array) -> jax.Array:
    """Multiply; both vary over the same mesh axes."""
    return _multiply(contract, rows, weight)


def _multiply(contract: int, rows: jax.Array, weight: jax.Array) -> jax.Array:
    summed = tuple(range(1, 1 + contract)), tuple(range(contract))
    return lax.dot_general(rows, weight, (summed, ((), ())))


def _product_gradients(
    contract: int, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def as_it_comes(rows: jax.Array, weight: jax.Array, g: jax.Array) -> Any:
        return jax.vjp(functools.partial(_multiply, contract), rows, weight)[1](g)

    def as_matrices(rows: jax.Array, weight: jax.Array, g: jax.Array) -> Any:
        # The weight's gradient would come out transposed where heads are a dimension of their own,
        # and the CPU's compiler then transposes g, and computes all that is fused into it again,
        # column by column.
        rows_RX, g_RY = (array.reshape(array.shape[0], -1) for array in (rows, g))
        weight_XY = weight.reshape(rows_RX.shape[1], -1)
        d_rows_RX = lax.dot_general(g_RY, weight_XY, (((1,), (1,)), ((), ())))
        d_weight_XY = lax.dot_general(rows_RX, g_RY, (((0,), (0,)), ((), ())))
        return d_rows_RX.reshape(rows.shape), d_weight_XY.reshape(weight.shape)

    both: tuple[jax.Array, jax.Array] = lax.platform_dependent(
        *saved, g, cpu=as_matrices, default=as_it_comes
    )
    return both


_product.defvjp(
    lambda contract, rows, weight: (_multiply(contract, rows, weight), (rows, weight)),
    _product_gradients,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded_once(contract: int, rows: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """Add the bias to the product's fp32 sums; all vary over the same mesh axes.

    The gradient is that of a product in 16 bits: autodiff's would multiply in fp32.
    """
    return _multiply_and_add(contract, rows, weight, bias)


def _multiply_and_add(
    contract: int, rows: jax.Array, weight: jax.Array, bias: jax.Array
) -> jax.Array:
    letters = "MNH"[:contract]
    others = "XYZ"[: weight.ndim - contract]
    sums = einsum_fp32(f"R{letters},{letters}{others}->R{others}", rows, weight)
    return (sums + bias).astype(rows.dtype)


_rounded_once.defvjp(
    lambda contract, rows, weight, bias: (
        _multiply_and_add(contract, rows, weight, bias),
        (rows, weight),
    ),
    lambda contract, saved, g: (
        *_product_gradients(contract, saved, g),
        g.astype(jnp.float32).sum(axis=0).astype(g.dtype),
    ),
)


@jax.custom_vjp
def computed_once(x: jax.Array) -> jax.Array:
    """Return x; on a TPU it is written to memory before anything uses it, and so is its gradient.

    Put it on a factor of a product, and the product reads the factor as it is. Without it the TPU's
    compiler computes the factor inside the product, again for every tile of the product's columns,
    and what follows the product's gradient (of a norm, of a gate) at the product's end, with
    smaller tiles: of a Llama's ffn that costs a tenth of the time (`benchmarks/plan.md`). Put it
    before what `checkpoint_name` saves: what is saved is then read where it lies.

    Values are the same on every platform.
    """
    return _written(x)


def _written(x: jax.Array) -> jax.Array:
    # Decided when the program is lowered: on other platforms nothing is left of it.
    result: jax.Array = lax.platform_dependent(x, tpu=lax.optimization_barrier, default=lambda x: x)
    return result


computed_once.defvjp(lambda x: (_written(x), None), lambda _, g: (_written(g),))
