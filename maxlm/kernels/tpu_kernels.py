"""The Mosaic kernels of flash attention on TPUs, for one stretch of keys that fits into VMEM.

Scores are computed as their transpose, (keys, queries): a row's maximum and sum are then taken
along sublanes, by plain vector instructions, log-sum-exps are lane vectors that need no broadcast
copy in memory, and what the matrix unit holds still is as wide as it is. A block of queries meets
the blocks of keys one after the other; keys and values of the stretch lie in VMEM: they are read
from memory once per stretch and kv head, not once per block of queries.

Both kernels walk over the blocks of a `mask.visit_table`: those that every query of the block sees
wholly, without mask arithmetic, and the others, with. Blocks that nobody sees are not visited. The
backward pass takes all three gradients in one walk; those of keys and values are summed in VMEM in
fp32, in an order that never changes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from maxlm.jax_versions import shape_like
from maxlm.kernels.mask import NOTHING_SEEN, Visits

HIDDEN = 4 * NOTHING_SEEN
"""Score of a hidden key: so far below any row's maximum, which starts at NOTHING_SEEN, that exp2
makes it zero.
"""
LOG2_E = math.log2(math.e)
LANES = 128
HALF_RANGE = -(2**31)
"""What numbers are moved by that have no sign, see `Who`, as an int32."""
TURN = 2
"""Blocks that one turn of the forward kernel's loop takes."""
NONE = -1
"""Instead of the number of a block."""


class Who(NamedTuple):
    """Who sees whom, which blocks meet, and how scores fall with distance. All but slopes int32.

    Attributes:
      queries: (B, 2, T): segments and ranks of `mask.words`, or least and count of
        `mask.least_words`, less 2^31.
      keys: (B, key blocks, 3, kv_block): segments, from and count, the latter two less 2^31; or
        (.., 1, ..): from, less 2^31.
      table: (B, query blocks, stretches, 1, 3 + key blocks of a stretch): `mask.visit_table` of
        each stretch.
      slopes: (N, 1, T) fp32, of each row; None if scores do not fall.
    """

    queries: jax.Array
    keys: jax.Array
    table: jax.Array
    slopes: Any = None

    @property
    def arrays(self) -> tuple[jax.Array, ...]:
        """Return what there is."""
        return tuple(x for x in self if x is not None)


class Tiling(NamedTuple):
    """Static numbers of a call.

    Attributes:
      q_block: queries of a block.
      kv_block: keys of a block.
      num_q_blocks: blocks of queries in a head.
      num_kv_blocks: blocks of keys in a stretch.
      num_stretches: stretches of keys in a row of the batch.
      reach: see `Mask`; work is estimated by it.
      scale: see `maxlm.kernels.shape.Scoring`.
      softcap: likewise.
      vmem_bytes: the compiler's limit.
      interpret: see `pallas_call`.
    """

    q_block: int
    kv_block: int
    num_q_blocks: int
    num_kv_blocks: int
    num_stretches: int
    reach: int | None
    scale: float
    softcap: float | None
    vmem_bytes: int
    interpret: Any


def forward_kernel(
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    who: Who,
    stretches: jax.Array,
    tiling: Tiling,
) -> tuple[jax.Array, jax.Array]:
    """Return out (B, N, T, H_v) and lse (B, N, 1, T); lengths are whole numbers of blocks and of
    stretches.

    Args:
      q_BNTH: queries.
      k_BKSH: keys.
      v_BKSH: values.
      who: who sees whom.
      stretches: int32 (B * query blocks * 2): the first and the last stretch with a block to visit.
      tiling: block sizes.
    """
    batch, num_heads, length, head_size = q_BNTH.shape
    value_size, group = v_BKSH.shape[3], num_heads // k_BKSH.shape[1]
    q_block, num_kv = tiling.q_block, tiling.num_kv_blocks
    stretch = num_kv * tiling.kv_block
    given = (stretches, q_BNTH, k_BKSH, v_BKSH, *who.arrays)

    def kv_index(b: Any, h: Any, i: Any, c: Any, stretches: Any) -> tuple[Any, ...]:
        # The nearest one that the row of blocks visits: a stretch that it does not visit is not
        # fetched.
        row = (b * tiling.num_q_blocks + i) * 2
        return b, lax.div(h, group), jnp.clip(c, stretches[row], stretches[row + 1]), 0

    def keys_index(b: Any, h: Any, i: Any, c: Any, stretches: Any) -> tuple[Any, ...]:
        return b, kv_index(b, h, i, c, stretches)[2], 0, 0

    def row_index(b: Any, h: Any, i: Any, *_: Any) -> tuple[Any, ...]:
        return b, h, i, 0

    return pl.pallas_call(
        functools.partial(_forward_block, tiling=tiling, sloped=who.slopes is not None),
        out_shape=(
            shape_like((batch, num_heads, length, value_size), q_BNTH.dtype, *given),
            shape_like((batch, num_heads, 1, length), jnp.float32, *given),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, num_heads, length // q_block, tiling.num_stretches),
            in_specs=[
                pl.BlockSpec((None, None, q_block, head_size), row_index),
                pl.BlockSpec((None, None, stretch, head_size), kv_index),
                pl.BlockSpec((None, None, stretch, value_size), kv_index),
                pl.BlockSpec((None, 2, q_block), lambda b, _, i, *__: (b, 0, i)),
                pl.BlockSpec((None, num_kv, who.keys.shape[2], tiling.kv_block), keys_index),
                _table_spec(who.table, lambda b, _, i, c, *__: (b, i, c, 0, 0)),
                *_slope_specs(who, lambda _, h, i, *__: (h, 0, i), q_block),
            ],
            out_specs=(
                pl.BlockSpec((None, None, q_block, value_size), row_index),
                pl.BlockSpec((None, None, 1, q_block), lambda b, h, i, *_: (b, h, 0, i)),
            ),
            scratch_shapes=[
                pltpu.VMEM((head_size, q_block), q_BNTH.dtype),
                pltpu.VMEM((value_size, q_block), jnp.float32),
                pltpu.VMEM((1, q_block), jnp.float32),
                pltpu.VMEM((1, q_block), jnp.float32),
                pltpu.VMEM((tiling.kv_block, q_block), jnp.float32),
                pltpu.VMEM((1, q_block), jnp.float32),
                pltpu.SMEM((1,), jnp.int32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=tiling.vmem_bytes,
        ),
        interpret=tiling.interpret,
        cost_estimate=_cost(
            tiling,
            q_BNTH,
            k_BKSH,
            v_BKSH,
            rows=batch * num_heads * length,
            width=head_size + value_size,
        ),
        name=f"flash_attention_forward_{q_block}_{tiling.kv_block}",
    )(*given)


def _slope_specs(
    who: Who, index: Callable[..., tuple[Any, ...]], q_block: int
) -> list[pl.BlockSpec]:
    """Return the layout of a block of queries' slopes, if there are any."""
    return [] if who.slopes is None else [pl.BlockSpec((None, 1, q_block), index)]


def _table_spec(table: jax.Array, index: Callable[..., tuple[Any, ...]]) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, None, 1, table.shape[4]), index, memory_space=pltpu.SMEM)


def _cost(tiling: Tiling, *arrays: jax.Array, rows: int, width: int) -> pl.CostEstimate:
    """State the work on one document per sequence, for XLA's scheduler and for `maxlm plan`.

    Args:
      tiling: block sizes and reach.
      *arrays: that are read or written.
      rows: queries of all heads and sequences.
      width: multiply-adds per pair of query and key.
    """
    keys = tiling.num_stretches * tiling.num_kv_blocks * tiling.kv_block
    seen = (
        keys
        if tiling.reach is None
        else min((keys + tiling.kv_block) // 2, tiling.reach + tiling.kv_block)
    )
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
    return pl.CostEstimate(
        flops=2 * rows * seen * width, transcendentals=rows * seen, bytes_accessed=moved
    )


def _forward_block(*refs: Any, tiling: Tiling, sloped: bool) -> None:
    """Attend from one block of queries to one stretch of keys."""
    q_ref, k_ref, v_ref, *rest = refs[1:]
    who, (out_ref, lse_ref, *scratch) = _who_first(rest, sloped)
    q_HT_ref, out_HT_ref, peak_ref, total_ref, scores_ref, highest_ref, waiting_ref = scratch
    stretch = pl.program_id(3)

    @pl.when(stretch == 0)
    def _() -> None:
        q_HT_ref[...] = q_ref[...].T
        out_HT_ref[...] = jnp.zeros_like(out_HT_ref)
        peak_ref[...] = jnp.full_like(peak_ref, NOTHING_SEEN)
        total_ref[...] = jnp.zeros_like(total_ref)

    def score(
        block: jax.Array, seen: Callable[[], jax.Array] | None = None
    ) -> tuple[jax.Array, jax.Array]:
        k_SH = k_ref[_block(block, tiling), :]
        scores_ST = _scores(k_SH, q_HT_ref[...], tiling, seen, _fall(who, block, tiling))[0]
        return scores_ST, scores_ST.max(axis=0, keepdims=True)

    def absorb() -> None:
        """Take the scores that wait into the running softmax."""
        peak = jnp.maximum(peak_ref[...], highest_ref[...])
        p_ST = jnp.exp2(scores_ref[...] - peak)
        shrink = jnp.exp2(peak_ref[...] - peak)
        total_ref[...] = total_ref[...] * shrink + p_ST.sum(axis=0, keepdims=True)
        peak_ref[...] = peak
        v_SH = v_ref[_block(waiting_ref[0], tiling), :]
        out_HT_ref[...] = out_HT_ref[...] * shrink + _dot(
            v_SH, p_ST.astype(v_SH.dtype), ((0,), (0,)), tiling
        )

    waiting = scores_ref, highest_ref, waiting_ref
    waiting_ref[0] = NONE
    attend_to_all, attend = _overlapped(score, absorb, waiting)
    _visit_blocks(attend_to_all, attend, who, tiling)
    pl.when(waiting_ref[0] != NONE)(absorb)

    @pl.when(stretch == pl.num_programs(3) - 1)
    def _() -> None:
        total = total_ref[...]
        seen = total > 0
        total = jnp.where(seen, total, 1.0)
        out_ref[...] = (out_HT_ref[...] / total).T.astype(out_ref.dtype)
        lse_ref[...] = jnp.where(seen, peak_ref[...] * (1 / LOG2_E) + jnp.log(total), NOTHING_SEEN)


def _overlapped(
    score: Callable[..., tuple[jax.Array, jax.Array]],
    absorb: Callable[[], None],
    waiting: tuple[Any, Any, Any],
) -> tuple[
    Callable[[jax.Array, jax.Array], None], Callable[[jax.Array, Callable[[], jax.Array]], None]
]:
    """Return `_visit_blocks`' two functions, which score a block while the one before it is
    absorbed.

    The matrix unit then has work while the vector unit takes exponentials. The scores that wait lie
    in one buffer: a block's are written where those absorbed were read. A maximum comes from
    `score`, so that `absorb` can take exponentials at once. In the program scores come first and
    are values till the others are read: written down in the order of what happens, or with two
    buffers, the compiler's schedule overlaps less.

    Args:
      score: returns the scores of a block and their maxima.
      absorb: takes in what waits.
      waiting: scores (S, T), their maxima (1, T) and the number of their block (1,), NONE if none
        wait.
    """
    scores_ref, highest_ref, block_ref = waiting

    def keep(block: jax.Array, scores: tuple[jax.Array, jax.Array]) -> None:
        scores_ref[...], highest_ref[...] = scores
        block_ref[0] = block

    def step(block: jax.Array, seen: Callable[[], jax.Array] | None = None) -> None:
        scores = score(block, seen)
        absorb()
        keep(block, scores)

    def visit(block: jax.Array, seen: Callable[[], jax.Array]) -> None:
        lax.cond(
            block_ref[0] == NONE, lambda: keep(block, score(block, seen)), lambda: step(block, seen)
        )

    def visit_all(first: jax.Array, last: jax.Array) -> None:
        @pl.when((block_ref[0] == NONE) & (first < last))
        def _start_with_nothing() -> None:
            keep(
                first, (jnp.full_like(scores_ref, HIDDEN), jnp.full_like(highest_ref, NOTHING_SEEN))
            )

        def turn(number: jax.Array, _: None) -> None:
            for n in range(TURN):
                step(first + TURN * number + n)

        lax.fori_loop(0, lax.div(last - first, TURN), turn, None)

    return visit_all, visit


def backward_kernel(
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    d_out_BNTH: jax.Array,
    statistics: tuple[jax.Array, jax.Array],
    who: Who,
    tiling: Tiling,
    d_q_dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return dq (B, N, T, H) in the given type, dk (B, K, S, H) and dv (B, K, S, H_v), for keys of
    one stretch.

    Args:
      q_BNTH: queries.
      k_BKSH: keys.
      v_BKSH: values.
      d_out_BNTH: gradient of the output.
      statistics: lse and delta = rowsum(d_out * out), both (B, N, 1, T) fp32.
      who: who sees whom, of the keys of the stretch.
      tiling: block sizes.
      d_q_dtype: fp32 where dq is a part of a sum.
    """
    batch, num_heads, length, head_size = q_BNTH.shape
    num_kv_heads, stretch, value_size = v_BKSH.shape[1:]
    group, q_block, num_kv = num_heads // num_kv_heads, tiling.q_block, tiling.num_kv_blocks
    given = (q_BNTH, k_BKSH, v_BKSH, d_out_BNTH, *statistics, *who.arrays)

    def row_index(b: Any, h: Any, g: Any, i: Any, *_: Any) -> tuple[Any, ...]:
        return b, h * group + g, i, 0

    def lane_index(b: Any, h: Any, g: Any, i: Any, *_: Any) -> tuple[Any, ...]:
        return b, h * group + g, 0, i

    def kv_index(b: Any, h: Any, *_: Any) -> tuple[Any, ...]:
        return b, h, 0, 0

    k_spec = pl.BlockSpec((None, None, stretch, head_size), kv_index)
    v_spec = pl.BlockSpec((None, None, stretch, value_size), kv_index)
    return pl.pallas_call(
        functools.partial(_backward_block, tiling=tiling, sloped=who.slopes is not None),
        out_shape=(
            shape_like(q_BNTH.shape, d_q_dtype, *given),
            shape_like(k_BKSH.shape, k_BKSH.dtype, *given),
            shape_like(v_BKSH.shape, v_BKSH.dtype, *given),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=0,
            grid=(batch, num_kv_heads, group, length // q_block),
            in_specs=[
                pl.BlockSpec((None, None, q_block, head_size), row_index),
                k_spec,
                v_spec,
                pl.BlockSpec((None, None, q_block, value_size), row_index),
                pl.BlockSpec((None, None, 1, q_block), lane_index),
                pl.BlockSpec((None, None, 1, q_block), lane_index),
                pl.BlockSpec((None, 2, q_block), lambda b, _, __, i: (b, 0, i)),
                pl.BlockSpec(
                    (None, num_kv, who.keys.shape[2], tiling.kv_block), lambda b, *_: (b, 0, 0, 0)
                ),
                _table_spec(who.table, lambda b, _, __, i: (b, i, 0, 0, 0)),
                *_slope_specs(who, lambda _, h, g, i: (h * group + g, 0, i), q_block),
            ],
            out_specs=(pl.BlockSpec((None, None, q_block, head_size), row_index), k_spec, v_spec),
            scratch_shapes=[
                pltpu.VMEM((head_size, q_block), q_BNTH.dtype),
                pltpu.VMEM((value_size, q_block), d_out_BNTH.dtype),
                pltpu.VMEM((head_size, q_block), jnp.float32),
                pltpu.VMEM((stretch, head_size), jnp.float32),
                pltpu.VMEM((stretch, value_size), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=tiling.vmem_bytes,
        ),
        interpret=tiling.interpret,
        cost_estimate=_cost(
            tiling, *given, rows=batch * num_heads * length, width=3 * head_size + 2 * value_size
        ),
        name=f"flash_attention_backward_{q_block}_{tiling.kv_block}",
    )(*given)


def _backward_block(*refs: Any, tiling: Tiling, sloped: bool) -> None:
    """Add what one block of queries contributes to all three gradients."""
    q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, *rest = refs
    who, (d_q_ref, d_k_ref, d_v_ref, *scratch) = _who_first(rest, sloped)
    q_HT_ref, d_out_HT_ref, d_q_HT_ref, d_k_sum_ref, d_v_sum_ref = scratch
    head, row = pl.program_id(2), pl.program_id(3)

    @pl.when((head == 0) & (row == 0))
    def _() -> None:
        d_k_sum_ref[...] = jnp.zeros_like(d_k_sum_ref)
        d_v_sum_ref[...] = jnp.zeros_like(d_v_sum_ref)

    q_HT_ref[...] = q_ref[...].T
    d_out_HT_ref[...] = d_out_ref[...].T
    d_q_HT_ref[...] = jnp.zeros_like(d_q_HT_ref)

    def add(block: jax.Array, seen: Callable[[], jax.Array] | None) -> None:
        here = _block(block, tiling)
        k_SH, v_SH, d_out_TH = k_ref[here, :], v_ref[here, :], d_out_ref[...]
        fall_ST = _fall(who, block, tiling)
        scores_ST, slope_ST = _scores(k_SH, q_HT_ref[...], tiling, seen, fall_ST)
        p_ST = jnp.exp2(scores_ST - lse_ref[...] * LOG2_E)
        d_v_sum_ref[here, :] += _dot(p_ST.astype(v_SH.dtype), d_out_TH, ((1,), (0,)), tiling)
        d_p_ST = _dot(v_SH, d_out_HT_ref[...], ((1,), (0,)), tiling)
        d_s_ST = p_ST * (d_p_ST - delta_ref[...])
        if slope_ST is not None:
            d_s_ST *= slope_ST
        d_s_ST = d_s_ST.astype(k_SH.dtype)
        d_k_sum_ref[here, :] += _dot(d_s_ST, q_ref[...], ((1,), (0,)), tiling)
        d_q_HT_ref[...] += _dot(k_SH, d_s_ST, ((0,), (0,)), tiling)

    def add_all(first: jax.Array, last: jax.Array) -> None:
        lax.fori_loop(first, last, lambda block, _: add(block, None), None)

    _visit_blocks(add_all, add, who, tiling)
    d_q_ref[...] = (d_q_HT_ref[...] * tiling.scale).T.astype(d_q_ref.dtype)

    @pl.when((head == pl.num_programs(2) - 1) & (row == pl.num_programs(3) - 1))
    def _() -> None:
        d_k_ref[...] = (d_k_sum_ref[...] * tiling.scale).astype(d_k_ref.dtype)
        d_v_ref[...] = d_v_sum_ref[...].astype(d_v_ref.dtype)


def _who_first(refs: list[Any], sloped: bool) -> tuple[Who, list[Any]]:
    """Return `Who` of the references, which starts with it, and the others."""
    count = 3 + sloped
    return Who(*refs[:count]), refs[count:]


def _visit_blocks(
    visit_all: Callable[[jax.Array, jax.Array], None],
    visit: Callable[[jax.Array, Callable[[], jax.Array]], None],
    refs: Who,
    tiling: Tiling,
) -> None:
    """Visit the blocks of keys of a stretch that a block of queries sees, counted within the
    stretch.

    Args:
      visit_all: is called, last, with a range of blocks that every query sees wholly.
      visit: is called with each other block and a function that returns who sees whom.
      refs: of the block of queries and the stretch.
      tiling: static numbers.
    """
    visits = Visits.of(refs.table, 0)

    def visit_other(number: jax.Array, _: None) -> None:
        block = visits.masked_block(number)
        visit(block, lambda: _seen(refs.queries[...], refs.keys[block], tiling))

    lax.fori_loop(0, visits.masked, visit_other, None)
    visit_all(visits.full_first, visits.full_end)


def _seen(queries_2T: jax.Array, keys_XS: jax.Array, tiling: Tiling) -> jax.Array:
    """Return bool (S, T): whether each query sees each key."""
    if keys_XS.shape[0] == 1:
        least, count = queries_2T[:1], queries_2T[1:]
        return _along_queries(keys_XS, tiling) - least < count
    segment, start, count = (_along_queries(keys_XS[n : n + 1], tiling) for n in range(3))
    return (queries_2T[:1] == segment) & (queries_2T[1:] - start < count)


def _along_queries(x_1S: jax.Array, tiling: Tiling) -> jax.Array:
    """Repeat what is known of keys for each query, (S, T)."""
    width = min(LANES, tiling.q_block)
    x_SW = jnp.broadcast_to(x_1S, (width, tiling.kv_block)).T
    return jnp.concatenate([x_SW] * (tiling.q_block // width), axis=1)


def _fall(who: Who, block: jax.Array, tiling: Tiling) -> jax.Array | None:
    """Return how much scores fall by distance, (S, T), or None if they do not.

    Where the key is hidden, the distance means nothing, but is finite.
    """
    if who.slopes is None:
        return None
    queries_2T, keys_XS = who.queries[...], who.keys[block]
    # Distances come out right modulo 2^32, whatever the numbers were moved by.
    if keys_XS.shape[0] == 1:  # rank = least + count - 1, count and from less 2^31
        rank_1T, start_1S = queries_2T[:1] + queries_2T[1:] - 1, keys_XS
    else:
        rank_1T, start_1S = queries_2T[1:] - HALF_RANGE, keys_XS[1:2]
    distance_ST = rank_1T - _along_queries(start_1S, tiling)
    return distance_ST.astype(jnp.float32) * who.slopes[...]


def _scores(
    k_SH: jax.Array,
    q_HT: jax.Array,
    tiling: Tiling,
    seen: Callable[[], jax.Array] | None,
    fall_ST: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Return fp32 scores (S, T) times log2(e), for exp2, and what softcap's slope multiplies their
    gradient with.
    """
    scores_ST = _dot(k_SH, q_HT, ((1,), (0,)), tiling)
    slope_ST = None
    if tiling.softcap is None:
        scores_ST *= tiling.scale * LOG2_E
    else:
        capped_ST = jnp.tanh(scores_ST * (tiling.scale / tiling.softcap))
        slope_ST = 1 - capped_ST * capped_ST
        scores_ST = capped_ST * (tiling.softcap * LOG2_E)
    if fall_ST is not None:
        scores_ST -= fall_ST * LOG2_E
    return (scores_ST if seen is None else jnp.where(seen(), scores_ST, HIDDEN)), slope_ST


def _block(block: jax.Array, tiling: Tiling) -> Any:
    return pl.ds(pl.multiple_of(block * tiling.kv_block, tiling.kv_block), tiling.kv_block)


def _dot(
    x: jax.Array, y: jax.Array, contract: tuple[tuple[int, ...], tuple[int, ...]], tiling: Tiling
) -> jax.Array:
    """Multiply with fp32 sums: bf16 in one pass of the matrix unit, fp32 in as many as keep its
    precision.
    """
    if tiling.interpret:  # products of bf16 are exact in fp32, and not every CPU has them
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        x, y, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )
