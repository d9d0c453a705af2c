"""The forward pass on Hopper: a thread block owns 128 queries, keys and values pass by."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from maxlm.kernels.hopper import blocks, wgmma
from maxlm.kernels.hopper.problem import COMPUTING, LOG2_E, ROWS, STAGES
from maxlm.kernels.mask import NOTHING_SEEN

_FLOOR = NOTHING_SEEN / 100
"""Where a row's maximum starts: below every score; finite, so that a hidden score of -inf becomes
0.
"""


def forward_kernel(problem, table, q_words, kv_words, q, k, v, out, lse, shared):  # type: ignore[no-untyped-def]
    """Sum p v for queries, and the log of the sum of each row's exponentials."""
    batch, head = (lax.axis_index(name) for name in ("batch", "head"))
    # The last rows of a causal mask are the longest: they start first.
    row = table.shape[1] - 1 - lax.axis_index("block")

    def compute(warpgroup: jax.Array) -> None:
        queries = pl.ds((row * COMPUTING + warpgroup) * ROWS, ROWS)
        plgpu.copy_gmem_to_smem(
            q.at[batch, queries, head], shared.q_tile.at[warpgroup], shared.tile_ready.at[warpgroup]
        )
        own_words = blocks.load_words(q_words.at[batch, :, queries], axis=0)
        plgpu.barrier_wait(shared.tile_ready.at[warpgroup])
        if problem.turns:
            pl.when(warpgroup == 1)(lambda: blocks.swap(shared.turn))

        def started() -> None:
            if problem.turns:
                plgpu.barrier_arrive(shared.turn)

        def visit(n: jax.Array, carry: Any, *, masked: bool, **_: Any) -> Any:
            # The keys of this block, and the values of the one before: while the tensor cores do
            # the second product, this warpgroup computes exponentials of the first. At n = 0 the
            # weights are zeros, and the values are block 0's.
            sums, *state = carry
            slot, before = (
                lax.rem(n, jnp.int32(STAGES)),
                lax.rem(jnp.maximum(n - 1, 0), jnp.int32(STAGES)),
            )
            pl.when(n != 1)(lambda: plgpu.barrier_wait(shared.second_ready.at[before]))
            plgpu.barrier_wait(shared.first_ready.at[slot])
            weigh = functools.partial(_soften, problem, own_words, shared, slot, masked)
            sums, state, shrink = wgmma.accumulate_beside(
                sums, state, shared.second_ring.at[before],
                (shared.q_tile.at[wgmma.opaque(warpgroup)], shared.first_ring.at[slot]),
                started, weigh, beside=not masked,
            )  # fmt: skip
            pl.when(n > 0)(lambda: plgpu.barrier_arrive(shared.second_free.at[before]))
            sums *= lax.broadcast_in_dim(shrink, sums.shape, [0])
            if problem.turns:
                plgpu.barrier_wait(shared.turn)
                blocks.swap(shared.turn)
            return sums, *state

        p = plgpu.layout_cast(jnp.zeros((ROWS, problem.block), jnp.bfloat16), plgpu.Layout.WGMMA)
        visits = problem.visits(table, batch, row)
        carry = blocks.zeros(problem.value_size), blocks.zeros() + _FLOOR, blocks.zeros(), p
        sums, peak, total, p = visits.walk(visit, carry)
        if problem.turns:
            pl.when(warpgroup == 0)(lambda: blocks.swap(shared.turn))
        last = lax.rem(jnp.maximum(visits.count - 1, 0), jnp.int32(STAGES))
        pl.when(visits.count > 1)(lambda: plgpu.barrier_wait(shared.second_ready.at[last]))
        sums = wgmma.accumulate(sums, p, shared.second_ring.at[last])
        pl.when(visits.count > 0)(lambda: plgpu.barrier_arrive(shared.second_free.at[last]))
        # Both are done: the ring is free for what goes out, which may be wider than the queries.
        blocks.swap(shared.turn)
        seen = total > 0
        total = jnp.where(seen, total, 1.0)
        out_tile, lse_tile = (
            shared.second_ring.at[warpgroup, pl.ds(0, ROWS)],
            shared.lse_tile.at[warpgroup],
        )
        # Where no block was visited, values that nobody brought were multiplied with zeros.
        seen_sums = jnp.where(lax.broadcast_in_dim(seen, sums.shape, [0]), sums, 0.0)
        out_tile[...] = (seen_sums * lax.broadcast_in_dim(1 / total, sums.shape, [0])).astype(
            jnp.bfloat16
        )
        lse_tile[...] = jnp.where(seen, (peak + jnp.log(total) * LOG2_E) / LOG2_E, NOTHING_SEEN)
        blocks.write(
            (out_tile, out.at[batch, queries, head]), (lse_tile, lse.at[batch, head, queries])
        )

    sources = blocks.keys_and_values(problem, batch, head, k, v, kv_words)
    blocks.share_work(
        compute, lambda: blocks.fetch_blocks(problem.visits(table, batch, row), sources, shared)
    )


def _soften(problem, own_words, shared, slot, masked, products, state):  # type: ignore[no-untyped-def]
    """Turn q k^T into weights, bf16, with each row's greatest exponent and sum so far; and what sums shrink by."""
    peak, total, _ = state
    scores, _ = problem.scores(products)
    if masked:
        scores = blocks.hide(scores, -jnp.inf, own_words, shared.mask_ring.at[slot])
        blocks.end_reading()
    plgpu.barrier_arrive(shared.first_free.at[slot])
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=1) * problem.exponent)
    p = jnp.exp2(scores * problem.exponent - lax.broadcast_in_dim(new_peak, scores.shape, [0]))
    shrink = jnp.exp2(peak - new_peak)
    return (new_peak, total * shrink + jnp.sum(p, axis=1), p.astype(jnp.bfloat16)), shrink
