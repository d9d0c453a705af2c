"""Matrix products of a warpgroup (wgmma), and what it computes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu


def multiply(x: Any, y: Any, then: Callable[[], None] = lambda: None) -> jax.Array:
    """Return x y^T, both in shared memory; `then` runs when the product is on its way."""

    def start(products: Any) -> jax.Array:
        plgpu.wgmma(products, x, plgpu.transpose_ref(y, (1, 0)))
        then()
        return products[...]

    return pl.run_scoped(start, plgpu.ACC((x.shape[0], y.shape[0]), jnp.float32))


def multiply_both(
    one: tuple[Any, Any], other: tuple[Any, Any], weigh: Callable[[jax.Array], Any]
) -> tuple[Any, Any]:
    """Return weigh(x y^T), computed during the other product, and the other product."""

    def start(first: Any, second: Any) -> tuple[Any, Any]:
        for products, (x, y) in ((first, one), (second, other)):
            plgpu.wgmma(products, x, plgpu.transpose_ref(y, (1, 0)))
        return weigh(plgpu.wgmma_accumulator_load(first, wait_n=1)), second[...]

    return pl.run_scoped(
        start, *(plgpu.ACC((x.shape[0], y.shape[0]), jnp.float32) for x, y in (one, other))
    )


def accumulate(sums: jax.Array, x: jax.Array, y: Any) -> jax.Array:
    """Return sums + x y, x in registers and y in shared memory."""
    return pl.run_state(lambda acc: plgpu.wgmma(acc, x, y))(plgpu.ACC.init(sums))


def accumulate_beside(sums, state, y, product, then, weigh, beside=True):  # type: ignore[no-untyped-def]
    """Return sums + p y, p the last of the state, and weigh(product, state), computed meanwhile.

    `then` runs when both products are on their way. Not `beside`: one after the other, for which
    fewer registers are enough.
    """

    if not beside:
        sums = accumulate(sums, state[-1], y)
        return sums, *weigh(multiply(product[0], product[1], then), state)

    def start(refs: Any) -> None:
        acc, shrink, *kept = refs

        def multiply(products: Any) -> jax.Array:
            plgpu.wgmma(products, product[0], plgpu.transpose_ref(product[1], (1, 0)))
            plgpu.wgmma(acc, kept[-1][...], y)
            then()
            return plgpu.wgmma_accumulator_load(products, wait_n=1)

        shape = product[0].shape[0], product[1].shape[0]
        products = pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))
        new, shrink[...] = weigh(products, [ref[...] for ref in kept])
        for ref, value in zip(kept, new, strict=True):
            ref[...] = value

    # What `shrink` begins with is never read: it only has the shape.
    sums, shrink, *state = pl.run_state(start)((plgpu.ACC.init(sums), state[0], *state))
    return sums, state, shrink


def opaque(index: jax.Array) -> jax.Array:
    """Hide from the compiler that an index is the same in every visit.

    It would keep the addresses of all parts of a tile in registers, which then spill.
    """
    return lax.optimization_barrier(index)
