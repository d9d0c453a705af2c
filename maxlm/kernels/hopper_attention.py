"""Flash attention for Hopper GPUs (H100, H200): Pallas kernels for Mosaic GPU.

FlashAttention-3 (arXiv:2407.08608). A thread block is one warpgroup that brings blocks from memory (TMA) into rings of
buffers, and two that compute (wgmma), each with its own 64 queries (forward, dq) or keys (dk and dv, all query heads of
the group one after the other: nothing is repeated in memory, no atomics, two runs give the same bits). In the forward
pass the two take turns: while one has the tensor cores, the other computes exponentials.

Blocks that nobody sees are not visited, blocks in which every pair is visible need no mask (`mask.block_ranges`).
Lengths need not fit: TMA reads zeros beyond the end, which no query sees, and writes nothing there.
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

from maxlm.jax_versions import vary_over, varying_axes
from maxlm.kernels.mask import NOTHING_SEEN, Mask, block_ranges, comparable_segments
from maxlm.kernels.shape import AttentionShape

HEAD_SIZES = (64, 96, 128)
"""Larger ones do not fit into the registers of the backward pass; other ones do not fit what TMA lays out."""
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
"""Where a row's maximum starts: below every score; finite, so that a hidden score of -inf becomes 0."""


def unsupported(shape: AttentionShape) -> str | None:
    """Return why these kernels cannot do it, or None."""
    if not any(name in shape.device_kind for name in ("H100", "H200", "H800", "H20")):
        return f"needs a Hopper GPU, not {shape.device_kind}; flash_triton runs from Ampere on"
    if shape.dtype != "bfloat16":
        return f"multiplies bfloat16, not {shape.dtype}; flash_triton takes float32 too"
    if shape.key_size != shape.value_size or shape.key_size not in HEAD_SIZES:
        sizes = f"{shape.key_size} (keys), {shape.value_size} (values)"
        return f"has head sizes 64, 96 and 128, the same for keys and values, not {sizes}; flash_triton has all to 256"
    return None


def forward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    softcap: float | None = None,
    device_kind: str = "NVIDIA H100 80GB HBM3",
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Compute softmax(q k^T / sqrt(H)) v; see `chunked_attention.forward`.

    Args:
      q_BTNH: queries, bf16; N is a multiple of K.
      k_BSKH: keys.
      v_BSKH: values, of the keys' head size.
      mask: who sees whom.
      softcap: c turns a score s into c tanh(s / c); None leaves it.
      device_kind: one of Hopper's; they differ in nothing that matters here.
      interpret: parameters of Pallas' simulated GPU.

    Returns:
      out (B, T, N, H) in bf16 and lse (B, N, T) fp32.
    """
    del device_kind
    problem = _Problem.of(q_BTNH, k_BSKH, mask, softcap, block=128)
    batch, length, num_heads, _ = q_BTNH.shape
    ranges = block_ranges(mask, _TILE, problem.block).of_queries
    segments = comparable_segments(mask, _TILE, problem.block)
    scratch = {
        "q_tile": _matrices(COMPUTING, ROWS, problem.size),
        "lse_tile": plgpu.SMEM((COMPUTING, ROWS), jnp.float32),
        **problem.rings("k", "v", {"segment": jnp.int32}),
        "q_ready": plgpu.Barrier(num_barriers=COMPUTING),
        "turn": plgpu.Barrier(num_arrivals=COMPUTING),
    }
    shapes = q_BTNH.shape, (batch, num_heads, ranges.shape[1] * _TILE)
    out, lse = _call(
        _forward_kernel,
        problem,
        (mask.q_start - mask.kv_start, ranges, *segments, q_BTNH, k_BSKH, v_BSKH),
        tuple(zip(shapes, (jnp.bfloat16, jnp.float32), strict=True)),
        scratch,
        (num_heads, ranges.shape[1], batch),
        interpret,
    )
    return out, lse[:, :, :length]


def backward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    out_BTNH: jax.Array,
    lse_BNT: jax.Array,
    d_out_BTNH: jax.Array,
    mask: Mask,
    *,
    softcap: float | None = None,
    device_kind: str = "NVIDIA H100 80GB HBM3",
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the gradients of q, k and v; formulas in `chunked_attention.backward`.

    `out` and `lse` may be of a larger softmax than this call's keys (ring attention).
    """
    del device_kind
    delta_BTN = jnp.sum(d_out_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32), axis=3)
    missing = -q_BTNH.shape[1] % _TILE
    lse, delta = (jnp.pad(x, ((0, 0), (0, 0), (0, missing))) for x in (lse_BNT * _LOG2_E, delta_BTN.mT))
    arrays = q_BTNH, k_BSKH, v_BSKH, d_out_BTNH, lse, delta
    d_q = _d_q(arrays, mask, softcap, interpret)
    return d_q, *_d_kv(arrays, mask, softcap, interpret)


def _d_q(arrays: Sequence[jax.Array], mask: Mask, softcap: float | None, interpret: Any) -> jax.Array:
    q, k, *_ = arrays
    problem = _Problem.of(q, k, mask, softcap, block=64)
    ranges = block_ranges(mask, _TILE, problem.block).of_queries
    segments = comparable_segments(mask, _TILE, problem.block)
    scratch = {
        "q_tile": _matrices(COMPUTING, ROWS, problem.size),
        "d_out_tile": _matrices(COMPUTING, ROWS, problem.size),
        **problem.rings("k", "v", {"segment": jnp.int32}),
        "q_ready": plgpu.Barrier(num_arrivals=2, num_barriers=COMPUTING),
    }
    arguments = (mask.q_start - mask.kv_start, ranges, *segments, *arrays)
    grid = (q.shape[2], ranges.shape[1], q.shape[0])
    (d_q,) = _call(_d_q_kernel, problem, arguments, ((q.shape, q.dtype),), scratch, grid, interpret)
    return d_q


def _d_kv(
    arrays: Sequence[jax.Array], mask: Mask, softcap: float | None, interpret: Any
) -> tuple[jax.Array, jax.Array]:
    q, k, v = arrays[:3]
    problem = _Problem.of(q, k, mask, softcap, block=64)
    ranges = block_ranges(mask, problem.block, _TILE).of_keys
    # Whole tiles of both, as lse and delta have.
    segments = comparable_segments(mask, _TILE, _TILE)
    vectors = {"segment": jnp.int32, "lse": jnp.float32, "delta": jnp.float32}
    scratch = {
        "k_tile": _matrices(COMPUTING, ROWS, problem.size),
        "v_tile": _matrices(COMPUTING, ROWS, problem.size),
        **problem.rings("q", "d_out", vectors),
        "kv_ready": plgpu.Barrier(num_arrivals=2, num_barriers=COMPUTING),
    }
    arguments = (mask.q_start - mask.kv_start, ranges, *segments, *arrays)
    outputs = (k.shape, k.dtype), (v.shape, v.dtype)
    grid = (k.shape[2], ranges.shape[1], q.shape[0])
    d_k, d_v = _call(_d_kv_kernel, problem, arguments, outputs, scratch, grid, interpret)
    return d_k, d_v


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What is static in a kernel."""

    block: int
    groups: int
    size: int
    causal: bool
    window: int | None
    softcap: float | None

    @classmethod
    def of(cls, q: jax.Array, k: jax.Array, mask: Mask, softcap: float | None, *, block: int) -> _Problem:
        return cls(block, q.shape[2] // k.shape[2], k.shape[3], mask.causal, mask.window, softcap)

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.size)

    def rings(self, first: str, second: str, vectors: dict[str, Any]) -> dict[str, Any]:
        """Return buffers for the two matrices of a block and for vectors, and their barriers.

        Of three vectors the last arrives with the second matrix, the others with the first.
        """
        late = len(vectors) // 3
        barrier = functools.partial(plgpu.Barrier, num_barriers=STAGES)
        return {
            **{f"{name}_ring": _matrices(STAGES, self.block, self.size) for name in (first, second)},
            **{f"{name}_ring": plgpu.SMEM((STAGES, self.block), dtype) for name, dtype in vectors.items()},
            f"{first}_ready": barrier(num_arrivals=1 + len(vectors) - late),
            f"{second}_ready": barrier(num_arrivals=1 + late),
            f"{first}_free": barrier(num_arrivals=COMPUTING),
            f"{second}_free": barrier(num_arrivals=COMPUTING),
        }

    def scores(self, products: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Turn q k^T into scores, as exponents of 2, and the slope of the cap, None without one."""
        if self.softcap is None:
            return products * (self.scale * _LOG2_E), None
        # The GPU's own approximation of tanh has only 11 bits.
        capped = 1 - 2 / (1 + jnp.exp2(products * (2 * _LOG2_E * self.scale / self.softcap)))
        return capped * (self.softcap * _LOG2_E), 1 - capped * capped

    def hide(
        self, scores: jax.Array, q_segment: jax.Array, kv_segment: jax.Array, distance: jax.Array, *, q_axis: int
    ) -> jax.Array:
        """Make scores of pairs that do not see each other -inf; `distance` is from the first key to the first query."""
        vectors = (q_segment, kv_segment) if q_axis == 0 else (kv_segment, q_segment)
        across = [lax.broadcast_in_dim(vector, scores.shape, [axis]) for axis, vector in enumerate(vectors)]
        scores = jnp.where(across[0] == across[1], scores, -jnp.inf)
        iota = functools.partial(plgpu.broadcasted_iota, jnp.int32, scores.shape, layout=plgpu.Layout.WGMMA)
        # The distance goes to the rows, of which a thread has two.
        q_index, kv_index = (iota(0) + distance, iota(1)) if q_axis == 0 else (iota(1), iota(0) - distance)
        if self.causal:
            scores = jnp.where(q_index >= kv_index, scores, -jnp.inf)
        if self.window is not None:
            near = q_index - self.window < kv_index if q_axis == 0 else q_index < kv_index + self.window
            scores = jnp.where(near, scores, -jnp.inf)
        return scores


def _call(
    kernel: Callable[..., None],
    problem: _Problem,
    arrays: Sequence[jax.Array],
    outputs: Sequence[tuple[tuple[int, ...], Any]],
    scratch: dict[str, Any],
    grid: tuple[int, int, int],
    interpret: Any,
) -> Any:
    """Run a kernel on every (head, block, batch); the first array is a scalar."""
    arrays = (jnp.reshape(arrays[0], 1).astype(jnp.int32), *arrays[1:])
    axes = varying_axes(*arrays)
    call = plgpu.kernel(
        lambda *references, **shared: kernel(problem, *references, SimpleNamespace(**shared)),
        out_type=tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs),
        scratch_types=scratch,
        grid=grid,
        grid_names=("head", "block", "batch"),
        num_threads=COMPUTING + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
        kernel_name=f"flash_hopper{kernel.__name__}",
    )
    # Mosaic GPU's results claim to vary over nothing.
    return tuple(vary_over(x, axes) for x in call(*(vary_over(x, axes) for x in arrays)))


def _forward_kernel(problem, offset, ranges, q_segments, kv_segments, q, k, v, out, lse, shared):  # type: ignore[no-untyped-def]
    batch, head, warpgroup = (lax.axis_index(name) for name in ("batch", "head", "warpgroup"))
    # The last rows of a causal mask are the longest: they start first.
    row = ranges.shape[1] - 1 - lax.axis_index("block")
    visits = _Visits.of(ranges, batch, row)

    @pl.when(warpgroup < COMPUTING)
    def _compute() -> None:
        plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
        queries = pl.ds((row * COMPUTING + warpgroup) * ROWS, ROWS)
        q_tile, q_ready = shared.q_tile.at[warpgroup], shared.q_ready.at[warpgroup]
        plgpu.copy_gmem_to_smem(q.at[batch, queries, head], q_tile, q_ready)
        q_segment = _load(q_segments.at[batch, queries], axis=0)
        distance = offset[0] + queries.start
        plgpu.barrier_wait(q_ready)
        pl.when(warpgroup == 1)(lambda: _swap(shared.turn))

        def visit(n: jax.Array, carry: Any, *, block: jax.Array, masked: bool, **_: Any) -> Any:
            sums, peak, total = carry
            slot = lax.rem(n, jnp.int32(STAGES))
            plgpu.barrier_wait(shared.k_ready.at[slot])
            products = _multiply(q_tile, shared.k_ring.at[slot], then=functools.partial(_swap, shared.turn))
            scores, _ = problem.scores(products)
            if masked:
                kv_segment = _load(shared.segment_ring.at[slot], axis=1)
                to_block = distance - block * problem.block
                scores = problem.hide(scores, q_segment, kv_segment, to_block, q_axis=0)
            plgpu.barrier_arrive(shared.k_free.at[slot])
            new_peak = jnp.maximum(peak, jnp.max(scores, axis=1))
            p = jnp.exp2(scores - lax.broadcast_in_dim(new_peak, scores.shape, [0]))
            shrink = jnp.exp2(peak - new_peak)
            sums *= lax.broadcast_in_dim(shrink, sums.shape, [0])
            total = total * shrink + jnp.sum(p, axis=1)
            # All of this before the tensor cores are taken.
            sums, total, p = lax.optimization_barrier((sums, total, p.astype(jnp.bfloat16)))
            plgpu.barrier_arrive(shared.turn)
            plgpu.barrier_wait(shared.v_ready.at[slot])
            plgpu.barrier_wait(shared.turn)
            sums = _accumulate(sums, p, shared.v_ring.at[slot])
            plgpu.barrier_arrive(shared.v_free.at[slot])
            return sums, new_peak, total

        carry = _zeros(problem.size), _zeros() + _FLOOR, _zeros()
        sums, peak, total = visits.walk(visit, carry)
        pl.when(warpgroup == 0)(lambda: _swap(shared.turn))
        seen = total > 0
        total = jnp.where(seen, total, 1.0)
        q_tile[...] = (sums * lax.broadcast_in_dim(1 / total, sums.shape, [0])).astype(jnp.bfloat16)
        lse_tile = shared.lse_tile.at[warpgroup]
        lse_tile[...] = jnp.where(seen, (peak + jnp.log(total) * _LOG2_E) / _LOG2_E, NOTHING_SEEN)
        _write((q_tile, out.at[batch, queries, head]), (lse_tile, lse.at[batch, head, queries]))

    @pl.when(warpgroup == COMPUTING)
    def _fetch() -> None:
        kv_head = lax.div(head, jnp.int32(problem.groups))

        def sources(block: jax.Array, group: Any) -> dict[str, Any]:
            del group
            keys = pl.ds(block * problem.block, problem.block)
            return {
                "k": {"k": k.at[batch, keys, kv_head], "segment": kv_segments.at[batch, keys]},
                "v": {"v": v.at[batch, keys, kv_head]},
            }

        _fetch_blocks(visits, sources, shared)


def _d_q_kernel(problem, offset, ranges, q_segments, kv_segments, q, k, v, d_out, lse, delta, d_q, shared):  # type: ignore[no-untyped-def]
    batch, head, warpgroup = (lax.axis_index(name) for name in ("batch", "head", "warpgroup"))
    row = ranges.shape[1] - 1 - lax.axis_index("block")
    visits = _Visits.of(ranges, batch, row)

    @pl.when(warpgroup < COMPUTING)
    def _compute() -> None:
        plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
        queries = pl.ds((row * COMPUTING + warpgroup) * ROWS, ROWS)
        q_tile, d_out_tile = shared.q_tile.at[warpgroup], shared.d_out_tile.at[warpgroup]
        plgpu.copy_gmem_to_smem(q.at[batch, queries, head], q_tile, shared.q_ready.at[warpgroup])
        plgpu.copy_gmem_to_smem(d_out.at[batch, queries, head], d_out_tile, shared.q_ready.at[warpgroup])
        q_segment = _load(q_segments.at[batch, queries], axis=0)
        q_lse, q_delta = (_load(x.at[batch, head, queries], axis=0) for x in (lse, delta))
        distance = offset[0] + queries.start
        plgpu.barrier_wait(shared.q_ready.at[warpgroup])

        def visit(n: jax.Array, d_q: jax.Array, *, block: jax.Array, masked: bool, **_: Any) -> jax.Array:
            slot = lax.rem(n, jnp.int32(STAGES))
            keys, values = shared.k_ring.at[slot], shared.v_ring.at[slot]

            def weigh(products: jax.Array) -> jax.Array:
                scores, slope = problem.scores(products)
                if masked:
                    kv_segment = _load(shared.segment_ring.at[slot], axis=1)
                    to_block = distance - block * problem.block
                    scores = problem.hide(scores, q_segment, kv_segment, to_block, q_axis=0)
                p = jnp.exp2(scores - lax.broadcast_in_dim(q_lse, scores.shape, [0]))
                return p if slope is None else p * slope

            plgpu.barrier_wait(shared.k_ready.at[slot])
            plgpu.barrier_wait(shared.v_ready.at[slot])
            p, d_p = _multiply_both((q_tile, keys), (d_out_tile, values), weigh)
            plgpu.barrier_arrive(shared.v_free.at[slot])
            d_s = (p * (d_p - lax.broadcast_in_dim(q_delta, p.shape, [0]))).astype(jnp.bfloat16)
            d_q = _accumulate(d_q, d_s, keys)
            plgpu.barrier_arrive(shared.k_free.at[slot])
            return d_q

        sums = visits.walk(visit, _zeros(problem.size))
        q_tile[...] = (sums * problem.scale).astype(jnp.bfloat16)
        _write((q_tile, d_q.at[batch, queries, head]))

    @pl.when(warpgroup == COMPUTING)
    def _fetch() -> None:
        kv_head = lax.div(head, jnp.int32(problem.groups))

        def sources(block: jax.Array, group: Any) -> dict[str, Any]:
            del group
            keys = pl.ds(block * problem.block, problem.block)
            return {
                "k": {"k": k.at[batch, keys, kv_head], "segment": kv_segments.at[batch, keys]},
                "v": {"v": v.at[batch, keys, kv_head]},
            }

        _fetch_blocks(visits, sources, shared)


def _d_kv_kernel(problem, offset, ranges, q_segments, kv_segments, q, k, v, d_out, lse, delta, d_k, d_v, shared):  # type: ignore[no-untyped-def]
    # Works on transposed scores (keys, queries), so that they go into the next product as they come out of the last.
    batch, kv_head, warpgroup = (lax.axis_index(name) for name in ("batch", "head", "warpgroup"))
    column = lax.axis_index("block")
    visits = _Visits.of(ranges, batch, column, problem.groups)

    @pl.when(warpgroup < COMPUTING)
    def _compute() -> None:
        plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
        keys = pl.ds((column * COMPUTING + warpgroup) * ROWS, ROWS)
        k_tile, v_tile = shared.k_tile.at[warpgroup], shared.v_tile.at[warpgroup]
        plgpu.copy_gmem_to_smem(k.at[batch, keys, kv_head], k_tile, shared.kv_ready.at[warpgroup])
        plgpu.copy_gmem_to_smem(v.at[batch, keys, kv_head], v_tile, shared.kv_ready.at[warpgroup])
        kv_segment = _load(kv_segments.at[batch, keys], axis=0)
        distance = offset[0] - keys.start
        plgpu.barrier_wait(shared.kv_ready.at[warpgroup])

        def visit(n: jax.Array, sums: Any, *, block: jax.Array, masked: bool, **_: Any) -> Any:
            sums_k, sums_v = sums
            slot = lax.rem(n, jnp.int32(STAGES))
            queries, d_outs = shared.q_ring.at[slot], shared.d_out_ring.at[slot]

            plgpu.barrier_wait(shared.q_ready.at[slot])
            scores, slope = problem.scores(_multiply(k_tile, queries))
            if masked:
                q_segment = _load(shared.segment_ring.at[slot], axis=1)
                to_block = distance + block * problem.block
                scores = problem.hide(scores, q_segment, kv_segment, to_block, q_axis=1)
            p = jnp.exp2(scores - lax.broadcast_in_dim(_load(shared.lse_ring.at[slot], axis=1), scores.shape, [1]))
            weights, p = p.astype(jnp.bfloat16), p if slope is None else p * slope
            plgpu.barrier_wait(shared.d_out_ready.at[slot])
            # One after the other: both at once would not fit into the registers.
            sums_v = _accumulate(sums_v, weights, d_outs)
            d_p = _multiply(v_tile, d_outs)
            q_delta = _load(shared.delta_ring.at[slot], axis=1)
            plgpu.barrier_arrive(shared.d_out_free.at[slot])
            d_s = (p * (d_p - lax.broadcast_in_dim(q_delta, p.shape, [1]))).astype(jnp.bfloat16)
            sums_k = _accumulate(sums_k, d_s, queries)
            plgpu.barrier_arrive(shared.q_free.at[slot])
            return sums_k, sums_v

        sums_k, sums_v = visits.walk(visit, (_zeros(problem.size), _zeros(problem.size)))
        k_tile[...] = (sums_k * problem.scale).astype(jnp.bfloat16)
        v_tile[...] = sums_v.astype(jnp.bfloat16)
        _write((k_tile, d_k.at[batch, keys, kv_head]), (v_tile, d_v.at[batch, keys, kv_head]))

    @pl.when(warpgroup == COMPUTING)
    def _fetch() -> None:
        def sources(block: jax.Array, group: Any) -> dict[str, Any]:
            queries = pl.ds(block * problem.block, problem.block)
            head = kv_head * problem.groups + group
            first = {"q": q.at[batch, queries, head], "segment": q_segments.at[batch, queries]}
            return {
                "q": {**first, "lse": lse.at[batch, head, queries]},
                "d_out": {"d_out": d_out.at[batch, queries, head], "delta": delta.at[batch, head, queries]},
            }

        _fetch_blocks(visits, sources, shared)


@dataclasses.dataclass(frozen=True)
class _Visits:
    """The blocks to visit, for each query head of a group: those that need a mask come first, for all heads."""

    before: jax.Array
    masked: jax.Array
    full: jax.Array
    first: jax.Array
    full_first: jax.Array
    full_end: jax.Array
    groups: int

    @classmethod
    def of(cls, ranges: Any, batch: jax.Array, index: jax.Array, groups: int = 1) -> _Visits:
        first, full_first, full_end, end = (ranges[batch, index, i] for i in range(4))
        before = full_first - first
        return cls(before, before + end - full_end, full_end - full_first, first, full_first, full_end, groups)

    def walk(self, visit: Callable[..., Any], carry: Any) -> Any:
        """Run carry = visit(n, carry, block=, group=, masked=) for visit n, to a block, for a head of the group."""

        def masked_block(place: jax.Array) -> jax.Array:
            return place + jnp.where(place < self.before, self.first, self.full_end - self.before)

        def full_block(place: jax.Array) -> jax.Array:
            return place + self.full_first

        for start, length, block_at in ((0, self.masked, masked_block), (self.masked, self.full, full_block)):

            def of_group(group: Any, carry: Any, start=start, length=length, block_at=block_at) -> Any:  # type: ignore[no-untyped-def]
                first = start * self.groups + group * length

                def one(place: jax.Array, carry: Any) -> Any:
                    where = {"block": block_at(place), "group": group, "masked": block_at is masked_block}
                    return visit(first + place, carry, **where)

                return lax.fori_loop(0, length, one, carry)

            carry = of_group(0, carry) if self.groups == 1 else lax.fori_loop(0, self.groups, of_group, carry)
        return carry


def _fetch_blocks(visits: _Visits, sources: Callable[..., Any], shared: SimpleNamespace) -> None:
    """Bring the blocks of all visits into the rings, as soon as there is room.

    `sources(block, group)` says for each of the two matrices what arrives with it: {ring: reference}.
    """
    plgpu.set_max_registers(_FETCH_REGISTERS, action="decrease")
    rings = vars(shared)

    def fetch(n: jax.Array, carry: Any, *, block: jax.Array, group: Any, masked: bool) -> Any:
        del masked
        slot = lax.rem(n, jnp.int32(STAGES))
        for name, arriving in sources(block, group).items():
            pl.when(n >= STAGES)(functools.partial(plgpu.barrier_wait, rings[f"{name}_free"].at[slot]))
            for ring, source in arriving.items():
                plgpu.copy_gmem_to_smem(source, rings[f"{ring}_ring"].at[slot], rings[f"{name}_ready"].at[slot])
        return carry

    visits.walk(fetch, None)
    # A barrier's last phase, too, is seen by the thread that waited for the ones before.
    for free in (barrier for name, barrier in rings.items() if name.endswith("_free")):
        for slot in range(STAGES):
            used = (visits.masked + visits.full) * visits.groups > slot
            pl.when(used)(functools.partial(plgpu.barrier_wait, free.at[slot]))


def _multiply(x: Any, y: Any, then: Callable[[], None] = lambda: None) -> jax.Array:
    """Return x y^T, both in shared memory; `then` runs when the product is on its way."""

    def start(products: Any) -> jax.Array:
        plgpu.wgmma(products, x, plgpu.transpose_ref(y, (1, 0)))
        then()
        return products[...]

    return pl.run_scoped(start, plgpu.ACC((x.shape[0], y.shape[0]), jnp.float32))


def _multiply_both(one: tuple[Any, Any], other: tuple[Any, Any], weigh: Callable[[jax.Array], Any]) -> tuple[Any, Any]:
    """Return weigh(x y^T), computed during the other product, and the other product."""

    def start(first: Any, second: Any) -> tuple[Any, Any]:
        for products, (x, y) in ((first, one), (second, other)):
            plgpu.wgmma(products, x, plgpu.transpose_ref(y, (1, 0)))
        return weigh(plgpu.wgmma_accumulator_load(first, wait_n=1)), second[...]

    return pl.run_scoped(start, *(plgpu.ACC((x.shape[0], y.shape[0]), jnp.float32) for x, y in (one, other)))


def _accumulate(sums: jax.Array, x: jax.Array, y: Any) -> jax.Array:
    """Return sums + x y, x in registers and y in shared memory."""
    return pl.run_state(lambda acc: plgpu.wgmma(acc, x, y))(plgpu.ACC.init(sums))


def _load(ref: Any, *, axis: int) -> jax.Array:
    """Load a vector that lies along an axis of a score matrix."""
    return plgpu.load(ref, (), layout=plgpu.Layout.WGMMA.reduce(1 - axis), optimized=False)


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


def _matrices(count: int, rows: int, columns: int) -> Any:
    """Return shared memory for bf16 matrices, laid out as wgmma reads them."""
    swizzle = plgpu.find_swizzle(columns * 16)
    transforms = plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle)
    return plgpu.SMEM((count, rows, columns), jnp.bfloat16, transforms=transforms)
