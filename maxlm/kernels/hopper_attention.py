"""Flash attention for Hopper GPUs (H100, H200): Pallas kernels for Mosaic GPU.

FlashAttention-3 (arXiv:2407.08608). A thread block is one warpgroup that brings blocks from memory
(TMA) into rings of buffers, and two that compute (wgmma), each with its own 64 queries (forward,
dq) or keys (dk and dv, all query heads of the group one after the other: nothing is repeated in
memory, no atomics, two runs give the same bits). In the forward pass each computes exponentials of
a block while the tensor cores multiply the weights of the block before, and where that is faster
the two take turns at the tensor cores. Where the sums of dk and dv are too large for
one, both have the same keys: one computes p and sums dv, the other takes p and sums dk.

Blocks that nobody sees are not visited, blocks in which every pair is visible need no mask
(`mask.block_ranges`). Lengths need not fit: TMA reads zeros beyond the end, which no query sees,
and writes nothing there.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from maxlm.devices import find_gpu
from maxlm.jax_versions import vary_over, varying_axes
from maxlm.kernels import block_sizes
from maxlm.kernels.mask import NOTHING_SEEN, Mask, Visits, block_ranges, words
from maxlm.kernels.shape import DISTANCE_SETTINGS, PLAIN, AttentionShape, Scoring

HOPPER = 9.0
"""Compute capability: the instructions are of this generation alone."""
MAX_HEAD_SIZE = 256
SIZE_STEP = 32
"""Head sizes are filled up with zeros to whole steps: TMA writes and wgmma reads tiles of 32 or 64
columns.
"""
TILE_ROWS = 8
"""Of the tiles that matrices are copied in: sequences are filled up to whole ones."""
COMPUTING = 2
"""Warpgroups that compute; one more fetches."""
ROWS = 64
"""Queries or keys of a computing warpgroup: the rows of a wgmma instruction."""
STAGES = 2
"""Blocks in a ring: one is worked on while the next arrives."""
_TILE = COMPUTING * ROWS
_COMPUTE_REGISTERS, _FETCH_REGISTERS = 240, 24
"""For each thread; 2 x 240 + 24 is what a multiprocessor has."""
_LOG2_E = math.log2(math.e)
_FLOOR = NOTHING_SEEN / 100
"""Where a row's maximum starts: below every score; finite, so that a hidden score of -inf becomes
0.
"""


def unsupported(shape: AttentionShape) -> str | None:
    """Return why these kernels cannot do it, or None."""
    gpu = find_gpu(shape.device_kind)
    if gpu is None or gpu.capability != HOPPER:
        return f"needs a Hopper GPU, not {shape.device_kind}; flash_triton runs from Ampere on"
    if shape.dtype != "bfloat16":
        able = "flash_triton" if shape.dtype == "float32" else "chunked"
        return f"multiplies bfloat16, not {shape.dtype}; {able} takes that"
    if max(shape.key_size, shape.value_size) > MAX_HEAD_SIZE:
        sizes = f"{shape.key_size} (keys), {shape.value_size} (values)"
        return f"has head sizes up to {MAX_HEAD_SIZE}, not {sizes}; chunked has all"
    if shape.by_distance:
        return f"adds nothing to scores by distance, {DISTANCE_SETTINGS[shape.by_distance]}"
    return None


def forward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring = PLAIN,
    device_kind: str = "NVIDIA H100 80GB HBM3",
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Compute softmax(scores) v; see `chunked_attention.forward`.

    Args:
      q_BTNH: queries, bf16; N is a multiple of K.
      k_BSKH: keys.
      v_BSKH: values; their head size may differ from the keys'.
      mask: who sees whom.
      scoring: how scores are made.
      device_kind: one of Hopper's; they differ in nothing that matters here.
      interpret: parameters of Pallas' simulated GPU.

    Returns:
      out (B, T, N, H_v) in bf16 and lse (B, N, T) fp32.
    """
    del device_kind
    problem = _Problem.of(q_BTNH, k_BSKH, v_BSKH, scoring, "forward")
    q, k, v = map(_fill_up, (q_BTNH, k_BSKH, v_BSKH))
    batch, length, num_heads, _ = q.shape
    scratch = {
        "q_tile": problem.matrices(COMPUTING, ROWS, problem.key_size),
        "lse_tile": plgpu.SMEM((COMPUTING, ROWS), jnp.float32),
        "tile_ready": plgpu.Barrier(num_barriers=COMPUTING),
        **problem.rings(),
        "turn": plgpu.Barrier(num_arrivals=COMPUTING),
    }
    inputs = *words(mask, _TILE, _TILE), q, k, v
    outputs = (
        jax.ShapeDtypeStruct((batch, length, num_heads, problem.value_size), q.dtype),
        jax.ShapeDtypeStruct((batch, num_heads, length + -length % _TILE), jnp.float32),
    )
    out, lse = _call(_forward_kernel, problem, mask, inputs, outputs, scratch, interpret)
    length = q_BTNH.shape[1]
    return out[:, :length, :, : v_BSKH.shape[3]], lse[:, :, :length]


def backward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    out_BTNH: jax.Array,
    lse_BNT: jax.Array,
    d_out_BTNH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring = PLAIN,
    device_kind: str = "NVIDIA H100 80GB HBM3",
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the gradients of q, k and v; formulas in `chunked_attention.backward`.

    `out` and `lse` may be of a larger softmax than this call's keys (ring attention).
    """
    del device_kind
    delta_BTN = jnp.sum(d_out_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32), axis=3)
    missing = -q_BTNH.shape[1] % _TILE
    lse, delta = (
        jnp.pad(x, ((0, 0), (0, 0), (0, missing))) for x in (lse_BNT * _LOG2_E, delta_BTN.mT)
    )
    inputs = (
        *words(mask, _TILE, _TILE),
        *map(_fill_up, (q_BTNH, k_BSKH, v_BSKH, d_out_BTNH)),
        lse,
        delta,
    )
    gradients: tuple[jax.Array, ...] = ()
    for kernel, like in (("d_q", inputs[2:3]), ("d_kv", inputs[3:5])):
        problem = _Problem.of(q_BTNH, k_BSKH, v_BSKH, scoring, kernel)
        scratch = problem.tiles() | problem.rings()
        if problem.apart:
            scratch["p_tile"] = _matrices(1, ROWS, 32, problem.block, jnp.float32)
            scratch |= {"p_ready": plgpu.Barrier(), "p_taken": plgpu.Barrier()}
        body = _d_kv_apart_kernel if problem.apart else _gradient_kernel
        outputs = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like)
        gradients += _call(body, problem, mask, inputs, outputs, scratch, interpret)
    d_q, d_k, d_v = (
        x[:, : y.shape[1], :, : y.shape[3]]
        for x, y in zip(gradients, (q_BTNH, k_BSKH, v_BSKH), strict=True)
    )
    return d_q, d_k, d_v


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What is static in a kernel."""

    kernel: str
    block: int
    apart: bool
    turns: bool
    groups: int
    key_size: int
    value_size: int
    scale: float
    softcap: float | None

    @classmethod
    def of(
        cls, q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, kernel: str
    ) -> _Problem:
        key_size, value_size = (x.shape[3] + -x.shape[3] % SIZE_STEP for x in (k, v))
        blocks = block_sizes.hopper(key_size, value_size)
        apart, groups = blocks.apart and kernel == "d_kv", q.shape[2] // k.shape[2]
        return cls(
            kernel,
            getattr(blocks, kernel),
            apart,
            blocks.turns,
            groups,
            key_size,
            value_size,
            scoring.scale_of(k.shape[3]),
            scoring.softcap,
        )

    @property
    def of_keys(self) -> bool:
        """Return whether a thread block owns keys, and queries pass by in the rings."""
        return self.kernel == "d_kv"

    @property
    def num_tiles(self) -> int:
        return 1 if self.apart else COMPUTING

    def table(self, mask: Mask) -> jax.Array:
        """Return which blocks pass by each thread block."""
        rows = self.num_tiles * ROWS
        if self.of_keys:
            return block_ranges(mask, self.block, rows).of_keys
        return block_ranges(mask, rows, self.block).of_queries

    def visits(self, table: Any, batch: jax.Array, index: jax.Array) -> Visits:
        return Visits.of(table, batch, index, groups=self.groups if self.of_keys else 1)

    def matrices(self, count: int, rows: int, columns: int) -> Any:
        """Return shared memory for bf16 matrices, in tiles that divide whatever is multiplied with
        whatever.
        """
        return _matrices(
            count, rows, math.gcd(64, self.block, self.key_size, self.value_size), columns
        )

    def tiles(self) -> dict[str, Any]:
        """Return what holds a thread block's own tokens in the backward pass: q and d_out, or k and
        v.
        """
        return {
            "first_tile": self.matrices(self.num_tiles, ROWS, self.key_size),
            "second_tile": self.matrices(self.num_tiles, ROWS, self.value_size),
            "tile_ready": plgpu.Barrier(num_arrivals=2, num_barriers=self.num_tiles),
        }

    def rings(self) -> dict[str, Any]:
        """Return buffers for the blocks that pass by: k and v, or q and d_out, with lse and delta,
        and their barriers.

        What the mask says of a block, and lse, arrive with the first matrix, delta with the second.
        """
        vectors = ("lse", "delta") if self.of_keys else ()
        arrivals = {"first": 2 + len(vectors[:1]), "second": 1 + len(vectors[1:])}
        barrier = functools.partial(plgpu.Barrier, num_barriers=STAGES)
        return {
            "first_ring": self.matrices(STAGES, self.block, self.key_size),
            "second_ring": self.matrices(STAGES, self.block, self.value_size),
            "mask_ring": plgpu.SMEM((STAGES, 2 if self.of_keys else 3, self.block), jnp.uint32),
            **{f"{name}_ring": plgpu.SMEM((STAGES, self.block), jnp.float32) for name in vectors},
            **{f"{name}_ready": barrier(num_arrivals=n) for name, n in arrivals.items()},
            **{f"{name}_free": barrier(num_arrivals=COMPUTING) for name in arrivals},
        }

    @property
    def exponent(self) -> float:
        """Return what scores are multiplied with to become exponents of 2."""
        return (self.scale if self.softcap is None else self.softcap) * _LOG2_E

    def scores(self, products: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Turn q k^T into scores in units of the scale or the cap, and the slope of the cap, None
        without one.
        """
        if self.softcap is None:
            return products, None
        # The GPU's own approximation of tanh has only 11 bits.
        capped = 1 - 2 / (1 + jnp.exp2(products * (2 * _LOG2_E * self.scale / self.softcap)))
        return capped, 1 - capped * capped


def _call(
    kernel: Callable[..., None],
    problem: _Problem,
    mask: Mask,
    inputs: Sequence[jax.Array],
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    scratch: dict[str, Any],
    interpret: Any,
) -> tuple[jax.Array, ...]:
    """Run a kernel on every head and batch row of its first output, and every block of its tokens."""
    arrays = (problem.table(mask), *inputs)
    axes = varying_axes(*arrays)
    call = plgpu.kernel(
        lambda *references, **shared: kernel(problem, *references, SimpleNamespace(**shared)),
        out_type=outputs,
        scratch_types=scratch,
        grid=(outputs[0].shape[2], arrays[0].shape[1], outputs[0].shape[0]),
        grid_names=("head", "block", "batch"),
        num_threads=COMPUTING + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
        kernel_name=f"flash_hopper_{problem.kernel}_kernel",
    )
    # Mosaic GPU's results claim to vary over nothing.
    return tuple(vary_over(x, axes) for x in call(*(vary_over(x, axes) for x in arrays)))


def _forward_kernel(problem, table, q_words, kv_words, q, k, v, out, lse, shared):  # type: ignore[no-untyped-def]
    batch, head = (lax.axis_index(name) for name in ("batch", "head"))
    # The last rows of a causal mask are the longest: they start first.
    row = table.shape[1] - 1 - lax.axis_index("block")

    def compute(warpgroup: jax.Array) -> None:
        queries = pl.ds((row * COMPUTING + warpgroup) * ROWS, ROWS)
        plgpu.copy_gmem_to_smem(
            q.at[batch, queries, head], shared.q_tile.at[warpgroup], shared.tile_ready.at[warpgroup]
        )
        own_words = _load_words(q_words.at[batch, :, queries], axis=0)
        plgpu.barrier_wait(shared.tile_ready.at[warpgroup])
        if problem.turns:
            pl.when(warpgroup == 1)(lambda: _swap(shared.turn))

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
            sums, state, shrink = _accumulate_beside(
                sums, state, shared.second_ring.at[before],
                (shared.q_tile.at[_opaque(warpgroup)], shared.first_ring.at[slot]),
                started, weigh, beside=not masked,
            )  # fmt: skip
            pl.when(n > 0)(lambda: plgpu.barrier_arrive(shared.second_free.at[before]))
            sums *= lax.broadcast_in_dim(shrink, sums.shape, [0])
            if problem.turns:
                plgpu.barrier_wait(shared.turn)
                _swap(shared.turn)
            return sums, *state

        p = plgpu.layout_cast(jnp.zeros((ROWS, problem.block), jnp.bfloat16), plgpu.Layout.WGMMA)
        visits = problem.visits(table, batch, row)
        carry = _zeros(problem.value_size), _zeros() + _FLOOR, _zeros(), p
        sums, peak, total, p = visits.walk(visit, carry)
        if problem.turns:
            pl.when(warpgroup == 0)(lambda: _swap(shared.turn))
        last = lax.rem(jnp.maximum(visits.count - 1, 0), jnp.int32(STAGES))
        pl.when(visits.count > 1)(lambda: plgpu.barrier_wait(shared.second_ready.at[last]))
        sums = _accumulate(sums, p, shared.second_ring.at[last])
        pl.when(visits.count > 0)(lambda: plgpu.barrier_arrive(shared.second_free.at[last]))
        # Both are done: the ring is free for what goes out, which may be wider than the queries.
        _swap(shared.turn)
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
        lse_tile[...] = jnp.where(seen, (peak + jnp.log(total) * _LOG2_E) / _LOG2_E, NOTHING_SEEN)
        _write((out_tile, out.at[batch, queries, head]), (lse_tile, lse.at[batch, head, queries]))

    sources = _keys_and_values(problem, batch, head, k, v, kv_words)
    _share_work(compute, lambda: _fetch_blocks(problem.visits(table, batch, row), sources, shared))


def _soften(problem, own_words, shared, slot, masked, products, state):  # type: ignore[no-untyped-def]
    """Turn q k^T into weights, bf16, with each row's greatest exponent and sum so far; and what sums shrink by."""
    peak, total, _ = state
    scores, _ = problem.scores(products)
    if masked:
        scores = _hide(scores, -jnp.inf, own_words, shared.mask_ring.at[slot])
        _end_reading()
    plgpu.barrier_arrive(shared.first_free.at[slot])
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=1) * problem.exponent)
    p = jnp.exp2(scores * problem.exponent - lax.broadcast_in_dim(new_peak, scores.shape, [0]))
    shrink = jnp.exp2(peak - new_peak)
    return (new_peak, total * shrink + jnp.sum(p, axis=1), p.astype(jnp.bfloat16)), shrink


def _gradient_kernel(  # type: ignore[no-untyped-def]
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
        own_words = _load_words(own_mask.at[batch, :, rows], axis=0)
        own_vectors = {}
        if not problem.of_keys:
            own_vectors = {
                name: _load(x.at[batch, head, rows], axis=0)
                for name, x in (("lse", lse), ("delta", delta))
            }
        plgpu.barrier_wait(shared.tile_ready.at[warpgroup])

        def visit(n: jax.Array, sums: Any, *, masked: bool, **_: Any) -> Any:
            slot = lax.rem(n, jnp.int32(STAGES))
            weigh = functools.partial(_weigh, problem, own_words, own_vectors, shared, slot, masked)
            first, second = shared.first_ring.at[slot], shared.second_ring.at[slot]
            first_tile, second_tile = (
                x.at[_opaque(warpgroup)] for x in (shared.first_tile, shared.second_tile)
            )

            plgpu.barrier_wait(shared.first_ready.at[slot])
            if problem.of_keys:
                p, p_slope = weigh(_multiply(first_tile, first))
                plgpu.barrier_wait(shared.second_ready.at[slot])
                # One after the other: both products at once would not fit into the registers.
                sums = sums[0], _accumulate(sums[1], p.astype(jnp.bfloat16), second)
                d_p = _multiply(second_tile, second)
            else:
                plgpu.barrier_wait(shared.second_ready.at[slot])
                (_, p_slope), d_p = _multiply_both(
                    (first_tile, first), (second_tile, second), weigh
                )
            d_p -= _of_queries("delta", own_vectors, shared, slot, d_p.shape)
            if problem.of_keys or masked:
                _end_reading()
            plgpu.barrier_arrive(shared.second_free.at[slot])
            sums = _accumulate(sums[0], (p_slope * d_p).astype(jnp.bfloat16), first), *sums[1:]
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
            visit, tuple(_zeros(size) for _, _, size, _ in results)
        )
        for (_, tile, _, scale), x in zip(results, sums, strict=True):
            tile[...] = (x * scale).astype(jnp.bfloat16)
        _write(*((tile, output.at[batch, rows, head]) for output, tile, _, _ in results))

    if problem.of_keys:
        sources = _queries(problem, batch, head, q, d_out, q_words, lse, delta)
    else:
        sources = _keys_and_values(problem, batch, head, k, v, kv_words)
    _share_work(
        compute, lambda: _fetch_blocks(problem.visits(table, batch, index), sources, shared)
    )


def _d_kv_apart_kernel(  # type: ignore[no-untyped-def]
    problem, table, q_words, kv_words, q, k, v, d_out, lse, delta, d_k, d_v, shared
):
    # As above, but both warpgroups have the same keys: one computes p and sums d_v, the other takes
    # p and sums d_k.
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
        own_words = _load_words(kv_words.at[batch, :, keys], axis=0)
        plgpu.barrier_wait(ready)

        def visit(n: jax.Array, sums: jax.Array, *, masked: bool, **_: Any) -> jax.Array:
            slot = lax.rem(n, jnp.int32(STAGES))
            plgpu.barrier_wait(shared.first_ready.at[slot])
            products = _multiply(
                shared.first_tile.at[_opaque(jnp.int32(0))], shared.first_ring.at[slot]
            )
            p, p_slope = _weigh(problem, own_words, {}, shared, slot, masked, products)
            _end_reading()
            plgpu.barrier_arrive(shared.first_free.at[slot])
            pl.when(n > 0)(lambda: plgpu.barrier_wait(shared.p_taken))
            shared.p_tile[0, ...] = p_slope
            plgpu.barrier_arrive(shared.p_ready)
            plgpu.barrier_wait(shared.second_ready.at[slot])
            sums = _accumulate(sums, p.astype(jnp.bfloat16), shared.second_ring.at[slot])
            plgpu.barrier_arrive(shared.second_free.at[slot])
            return sums

        sums = visits().walk(visit, _zeros(problem.value_size))
        pl.when(visits().count > 0)(lambda: plgpu.barrier_wait(shared.p_taken))
        v_tile[...] = sums.astype(jnp.bfloat16)
        _write((v_tile, d_v.at[batch, keys, kv_head]))

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
            d_p = _multiply(v_tile, shared.second_ring.at[slot])
            d_p -= _of_queries("delta", {}, shared, slot, d_p.shape)
            _end_reading()
            plgpu.barrier_arrive(shared.second_free.at[slot])
            plgpu.barrier_wait(shared.p_ready)
            d_s = (shared.p_tile[0, ...] * d_p).astype(jnp.bfloat16)
            plgpu.barrier_arrive(shared.p_taken)
            plgpu.barrier_wait(shared.first_ready.at[slot])
            sums = _accumulate(sums, d_s, shared.first_ring.at[slot])
            plgpu.barrier_arrive(shared.first_free.at[slot])
            return sums

        sums = visits().walk(visit, _zeros(problem.key_size))
        k_tile[...] = (sums * problem.scale).astype(jnp.bfloat16)
        _write((k_tile, d_k.at[batch, keys, kv_head]))

    def compute(warpgroup: jax.Array) -> None:
        pl.when(warpgroup == 0)(sum_values)
        pl.when(warpgroup == 1)(sum_keys)

    sources = _queries(problem, batch, kv_head, q, d_out, q_words, lse, delta)
    _share_work(compute, lambda: _fetch_blocks(visits(), sources, shared))


def _weigh(problem, own_words, own_vectors, shared, slot, masked, products):  # type: ignore[no-untyped-def]
    """Turn q k^T, or k q^T, into p, and p times the slope of the cap; both fp32."""
    scores, slope = problem.scores(products)
    p = jnp.exp2(
        scores * problem.exponent - _of_queries("lse", own_vectors, shared, slot, scores.shape)
    )
    if masked:
        # Only now: fewer other values are in registers.
        p = _hide(p, 0.0, own_words, shared.mask_ring.at[slot])
    return p, p if slope is None else p * slope


def _hide(
    values: jax.Array, hidden: float, own_words: Sequence[jax.Array], passing_words: Any
) -> jax.Array:
    """Replace the values of pairs that do not see each other; see `mask.words`."""
    own = [lax.broadcast_in_dim(x, values.shape, [0]) for x in own_words]
    passing = [
        lax.broadcast_in_dim(x, values.shape, [1]) for x in _load_words(passing_words, axis=1)
    ]
    # There are two words of a query and three of a key.
    (q_segment, q_rank), (kv_segment, kv_from, kv_count) = sorted((own, passing), key=len)
    return jnp.where((q_segment == kv_segment) & (q_rank - kv_from < kv_count), values, hidden)


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
    return lax.broadcast_in_dim(_load(vars(shared)[f"{name}_ring"].at[slot], axis=1), shape, [1])


def _share_work(compute: Callable[[jax.Array], None], fetch: Callable[[], None]) -> None:
    """Let each warpgroup do its part.

    What both need, each computes itself: kept over the change of registers it would spill, for one
    has few of them.
    """
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup < COMPUTING)
    def _compute() -> None:
        plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
        compute(warpgroup)

    @pl.when(warpgroup == COMPUTING)
    def _fetch() -> None:
        plgpu.set_max_registers(_FETCH_REGISTERS, action="decrease")
        fetch()


def _keys_and_values(problem, batch, head, k, v, kv_words):  # type: ignore[no-untyped-def]
    """Return sources(block, group) for `_fetch_blocks`, for a block of queries."""
    kv_head = lax.div(head, jnp.int32(problem.groups))

    def sources(block: jax.Array, group: Any) -> dict[str, Any]:
        del group
        keys = pl.ds(block * problem.block, problem.block)
        return {
            "first": {"first": k.at[batch, keys, kv_head], "mask": kv_words.at[batch, :, keys]},
            "second": {"second": v.at[batch, keys, kv_head]},
        }

    return sources


def _queries(problem, batch, kv_head, q, d_out, q_words, lse, delta):  # type: ignore[no-untyped-def]
    """Return sources(block, group) for `_fetch_blocks`, for a block of keys."""

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


def _fetch_blocks(visits: Visits, sources: Callable[..., Any], shared: SimpleNamespace) -> None:
    """Bring the blocks of all visits into the rings, as soon as there is room.

    `sources(block, group)` says for each of the two matrices what arrives with it: {ring:
    reference}.
    """
    rings = vars(shared)

    def fetch(n: jax.Array, carry: Any, *, block: jax.Array, group: Any, **_: Any) -> Any:
        slot = lax.rem(n, jnp.int32(STAGES))
        for name, arriving in sources(block, group).items():
            pl.when(n >= STAGES)(
                functools.partial(plgpu.barrier_wait, rings[f"{name}_free"].at[slot])
            )
            for ring, source in arriving.items():
                plgpu.copy_gmem_to_smem(
                    source, rings[f"{ring}_ring"].at[slot], rings[f"{name}_ready"].at[slot]
                )
        return carry

    visits.walk(fetch, None)
    # A barrier's last phase, too, is seen by the thread that waited for the ones before.

    def finish(slot: jax.Array, _: None) -> None:
        for barrier in (shared.first_free, shared.second_free):
            plgpu.barrier_wait(barrier.at[slot])

    lax.fori_loop(0, jnp.minimum(visits.count, STAGES), finish, None)


def _multiply(x: Any, y: Any, then: Callable[[], None] = lambda: None) -> jax.Array:
    """Return x y^T, both in shared memory; `then` runs when the product is on its way."""

    def start(products: Any) -> jax.Array:
        plgpu.wgmma(products, x, plgpu.transpose_ref(y, (1, 0)))
        then()
        return products[...]

    return pl.run_scoped(start, plgpu.ACC((x.shape[0], y.shape[0]), jnp.float32))


def _multiply_both(
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


def _accumulate(sums: jax.Array, x: jax.Array, y: Any) -> jax.Array:
    """Return sums + x y, x in registers and y in shared memory."""
    return pl.run_state(lambda acc: plgpu.wgmma(acc, x, y))(plgpu.ACC.init(sums))


def _accumulate_beside(sums, state, y, product, then, weigh, beside=True):  # type: ignore[no-untyped-def]
    """Return sums + p y, p the last of the state, and weigh(product, state), computed meanwhile.

    `then` runs when both products are on their way. Not `beside`: one after the other, for which
    fewer registers are enough.
    """

    if not beside:
        sums = _accumulate(sums, state[-1], y)
        return sums, *weigh(_multiply(product[0], product[1], then), state)

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

    sums, shrink, *state = pl.run_state(start)((plgpu.ACC.init(sums), state[0], *state))
    return sums, state, shrink


def _opaque(index: jax.Array) -> jax.Array:
    """Hide from the compiler that an index is the same in every visit.

    It would keep the addresses of all parts of a tile in registers, which then spill.
    """
    return lax.optimization_barrier(index)


def _load(ref: Any, *, axis: int) -> jax.Array:
    """Load a vector that lies along an axis of a score matrix."""
    return plgpu.load(ref, (), layout=plgpu.Layout.WGMMA.reduce(1 - axis), optimized=False)


def _load_words(ref: Any, *, axis: int) -> list[jax.Array]:
    """Load what the mask says of tokens that lie along an axis of a score matrix."""
    return [_load(ref.at[i], axis=axis) for i in range(ref.shape[0])]


def _end_reading() -> None:
    """Order what threads have read of a ring before what TMA will write there.

    The threads read masks and vectors through one proxy, TMA writes through another: a barrier
    alone orders accesses of one (PTX, memory consistency model, proxies). What wgmma reads, it
    reads through TMA's.
    """
    plgpu.commit_smem()


def _write(*copies: tuple[Any, Any]) -> None:
    """Copy from shared memory and wait until it is done."""
    plgpu.commit_smem()
    for tile, destination in copies:
        plgpu.copy_smem_to_gmem(tile, destination)
    plgpu.wait_smem_to_gmem(0)


def _swap(turn: Any) -> None:
    """Give the tensor cores to the other warpgroup and wait until it gives them back."""
    plgpu.barrier_arrive(turn)
    plgpu.barrier_wait(turn)


def _zeros(columns: int | None = None) -> jax.Array:
    if columns is None:
        return plgpu.layout_cast(jnp.full((ROWS,), 0, jnp.float32), plgpu.Layout.WGMMA.reduce(1))
    return plgpu.layout_cast(jnp.full((ROWS, columns), 0, jnp.float32), plgpu.Layout.WGMMA)


def _fill_up(x_BTNH: jax.Array) -> jax.Array:
    """Fill sequences and heads up to what TMA and the kernels take; zeros add nothing to any product."""
    missing = -x_BTNH.shape[1] % TILE_ROWS, -x_BTNH.shape[3] % SIZE_STEP
    return jnp.pad(x_BTNH, ((0, 0), (0, missing[0]), (0, 0), (0, missing[1])))


def _matrices(count: int, rows: int, tile: int, columns: int, dtype: Any = jnp.bfloat16) -> Any:
    """Return shared memory for matrices, laid out in tiles of 8 rows, as wgmma reads them."""
    swizzle = tile * jnp.dtype(dtype).itemsize
    transforms = plgpu.TilingTransform((TILE_ROWS, tile)), plgpu.SwizzleTransform(swizzle)  # type: ignore[abstract]  # jax 0.11
    return plgpu.SMEM((count, rows, columns), dtype, transforms=transforms)
