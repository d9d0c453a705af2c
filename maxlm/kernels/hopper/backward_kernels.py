"""The backward pass on Hopper: dq of queries by which keys pass; dk and dv of keys by which queries
pass.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from maxlm.kernels.hopper import blocks, wgmma
from maxlm.kernels.hopper.problem import COMPUTING, ROWS, STAGES


def gradient_kernel(  # type: ignore[no-untyped-def]
    problem, table, q_words, kv_words, q, k, v, d_out, lse, delta, *outputs_and_shared
):
    """Sum dq for queries, or dk and dv for keys.

    For keys, scores are transposed, (keys, queries), so that they go into the next product as they
    come out of the last.
    """
    *outputs, shared = outputs_and_shared
    batch, head, index = (lax.axis_index(name) for name in ("batch", "head", "block"))
    if not problem.of_keys:
        index = table.shape[1] - 1 - index
    own, own_mask = ((k, v), kv_words) if problem.of_keys else ((q, d_out), q_words)

    def compute(warpgroup: jax.Array) -> None:
        rows = pl.ds((index * COMPUTING + warpgroup) * ROWS, ROWS)
        tiles = shared.first_tile.at[warpgroup], shared.second_tile.at[warpgroup]
        for x, tile in zip(own, tiles, strict=True):
            plgpu.copy_gmem_to_smem(x.at[batch, rows, head], tile, shared.tile_ready.at[warpgroup])
        own_words = blocks.load_words(own_mask.at[batch, :, rows], axis=0)
        own_vectors = {}
        if not problem.of_keys:
            own_vectors = {
                name: blocks.load(x.at[batch, head, rows], axis=0)
                for name, x in (("lse", lse), ("delta", delta))
            }
        plgpu.barrier_wait(shared.tile_ready.at[warpgroup])

        def visit(n: jax.Array, sums: Any, *, masked: bool, **_: Any) -> Any:
            slot = lax.rem(n, jnp.int32(STAGES))
            weigh = functools.partial(_weigh, problem, own_words, own_vectors, shared, slot, masked)
            first, second = shared.first_ring.at[slot], shared.second_ring.at[slot]
            first_tile, second_tile = (
                x.at[wgmma.opaque(warpgroup)] for x in (shared.first_tile, shared.second_tile)
            )

            plgpu.barrier_wait(shared.first_ready.at[slot])
            if problem.of_keys:
                p, p_slope = weigh(wgmma.multiply(first_tile, first))
                plgpu.barrier_wait(shared.second_ready.at[slot])
                # One after the other: both products at once would not fit into the registers.
                sums = sums[0], wgmma.accumulate(sums[1], p.astype(jnp.bfloat16), second)
                d_p = wgmma.multiply(second_tile, second)
            else:
                plgpu.barrier_wait(shared.second_ready.at[slot])
                (_, p_slope), d_p = wgmma.multiply_both(
                    (first_tile, first), (second_tile, second), weigh
                )
            d_p -= _of_queries("delta", own_vectors, shared, slot, d_p.shape)
            if problem.of_keys or masked:
                blocks.end_reading()
            plgpu.barrier_arrive(shared.second_free.at[slot])
            sums = (
                wgmma.accumulate(sums[0], (p_slope * d_p).astype(jnp.bfloat16), first),
                *sums[1:],
            )
            plgpu.barrier_arrive(shared.first_free.at[slot])
            return sums

        # dq takes the first tile alone.
        results = list(
            zip(
                outputs,
                tiles,
                (problem.key_size, problem.value_size),
                (problem.scale, 1),
                strict=False,
            )
        )
        sums = problem.visits(table, batch, index).walk(
            visit, tuple(blocks.zeros(size) for _, _, size, _ in results)
        )
        for (_, tile, _, scale), x in zip(results, sums, strict=True):
            tile[...] = (x * scale).astype(jnp.bfloat16)
        blocks.write(*((tile, output.at[batch, rows, head]) for output, tile, _, _ in results))

    if problem.of_keys:
        sources = _queries(problem, batch, head, q, d_out, q_words, lse, delta)
    else:
        sources = blocks.keys_and_values(problem, batch, head, k, v, kv_words)
    blocks.share_work(
        compute, lambda: blocks.fetch_blocks(problem.visits(table, batch, index), sources, shared)
    )


def d_kv_apart_kernel(  # type: ignore[no-untyped-def]
    problem, table, q_words, kv_words, q, k, v, d_out, lse, delta, d_k, d_v, shared
):
    """Sum dk and dv where both warpgroups have the same keys: one computes p and sums dv, the other
    takes p and sums dk.
    """
    batch, kv_head, column = (lax.axis_index(name) for name in ("batch", "head", "block"))
    keys = pl.ds(column * ROWS, ROWS)
    visits = functools.partial(problem.visits, table, batch, column)

    def sum_values() -> None:
        k_tile, v_tile, ready = (
            shared.first_tile.at[0],
            shared.second_tile.at[0],
            shared.tile_ready.at[0],
        )
        plgpu.copy_gmem_to_smem(k.at[batch, keys, kv_head], k_tile, ready)
        own_words = blocks.load_words(kv_words.at[batch, :, keys], axis=0)
        plgpu.barrier_wait(ready)

        def visit(n: jax.Array, sums: jax.Array, *, masked: bool, **_: Any) -> jax.Array:
            slot = lax.rem(n, jnp.int32(STAGES))
            plgpu.barrier_wait(shared.first_ready.at[slot])
            products = wgmma.multiply(
                shared.first_tile.at[wgmma.opaque(jnp.int32(0))], shared.first_ring.at[slot]
            )
            p, p_slope = _weigh(problem, own_words, {}, shared, slot, masked, products)
            blocks.end_reading()
            plgpu.barrier_arrive(shared.first_free.at[slot])
            pl.when(n > 0)(lambda: plgpu.barrier_wait(shared.p_taken))
            shared.p_tile[0, ...] = p_slope
            plgpu.barrier_arrive(shared.p_ready)
            plgpu.barrier_wait(shared.second_ready.at[slot])
            sums = wgmma.accumulate(sums, p.astype(jnp.bfloat16), shared.second_ring.at[slot])
            plgpu.barrier_arrive(shared.second_free.at[slot])
            return sums

        sums = visits().walk(visit, blocks.zeros(problem.value_size))
        pl.when(visits().count > 0)(lambda: plgpu.barrier_wait(shared.p_taken))
        v_tile[...] = sums.astype(jnp.bfloat16)
        blocks.write((v_tile, d_v.at[batch, keys, kv_head]))

    def sum_keys() -> None:
        k_tile, v_tile, ready = (
            shared.first_tile.at[0],
            shared.second_tile.at[0],
            shared.tile_ready.at[0],
        )
        plgpu.copy_gmem_to_smem(v.at[batch, keys, kv_head], v_tile, ready)
        plgpu.barrier_wait(ready)

        def visit(n: jax.Array, sums: jax.Array, **_: Any) -> jax.Array:
            slot = lax.rem(n, jnp.int32(STAGES))
            plgpu.barrier_wait(shared.second_ready.at[slot])
            d_p = wgmma.multiply(v_tile, shared.second_ring.at[slot])
            d_p -= _of_queries("delta", {}, shared, slot, d_p.shape)
            blocks.end_reading()
            plgpu.barrier_arrive(shared.second_free.at[slot])
            plgpu.barrier_wait(shared.p_ready)
            d_s = (shared.p_tile[0, ...] * d_p).astype(jnp.bfloat16)
            plgpu.barrier_arrive(shared.p_taken)
            plgpu.barrier_wait(shared.first_ready.at[slot])
            sums = wgmma.accumulate(sums, d_s, shared.first_ring.at[slot])
            plgpu.barrier_arrive(shared.first_free.at[slot])
            return sums

        sums = visits().walk(visit, blocks.zeros(problem.key_size))
        k_tile[...] = (sums * problem.scale).astype(jnp.bfloat16)
        blocks.write((k_tile, d_k.at[batch, keys, kv_head]))

    def compute(warpgroup: jax.Array) -> None:
        pl.when(warpgroup == 0)(sum_values)
        pl.when(warpgroup == 1)(sum_keys)

    sources = _queries(problem, batch, kv_head, q, d_out, q_words, lse, delta)
    blocks.share_work(compute, lambda: blocks.fetch_blocks(visits(), sources, shared))


def _weigh(problem, own_words, own_vectors, shared, slot, masked, products):  # type: ignore[no-untyped-def]
    """Turn q k^T, or k q^T, into p, and p times the slope of the cap; both fp32."""
    scores, slope = problem.scores(products)
    p = jnp.exp2(
        scores * problem.exponent - _of_queries("lse", own_vectors, shared, slot, scores.shape)
    )
    if masked:
        # Only now: fewer other values are in registers.
        p = blocks.hide(p, 0.0, own_words, shared.mask_ring.at[slot])
    return p, p if slope is None else p * slope


def _of_queries(
    name: str,
    own_vectors: dict[str, jax.Array],
    shared: SimpleNamespace,
    slot: jax.Array,
    shape: tuple[int, ...],
) -> jax.Array:
    """Return a vector of queries as a matrix: of the own ones, which are rows, or of those that
    pass by.
    """
    if name in own_vectors:
        return lax.broadcast_in_dim(own_vectors[name], shape, [0])
    return lax.broadcast_in_dim(
        blocks.load(vars(shared)[f"{name}_ring"].at[slot], axis=1), shape, [1]
    )


def _queries(problem, batch, kv_head, q, d_out, q_words, lse, delta):  # type: ignore[no-untyped-def]
    """Return sources(block, group) for `blocks.fetch_blocks`, for a block of keys."""

    def sources(block: jax.Array, group: Any) -> dict[str, Any]:
        queries = pl.ds(block * problem.block, problem.block)
        head = kv_head * problem.groups + group
        first = {"first": q.at[batch, queries, head], "mask": q_words.at[batch, :, queries]}
        return {
            "first": {**first, "lse": lse.at[batch, head, queries]},
            "second": {
                "second": d_out.at[batch, queries, head],
                "delta": delta.at[batch, head, queries],
            },
        }

    return sources
