"""Flash attention for Hopper GPUs (H100, H200): Pallas kernels for Mosaic GPU.

FlashAttention-3 (arXiv:2407.08608). A thread block is one warpgroup that brings blocks from memory (TMA) into rings of
buffers, and two that compute (wgmma), each with its own 64 queries (forward, dq) or keys (dk and dv, all query heads of
the group one after the other: nothing is repeated in memory, no atomics, two runs give the same bits). In the forward
pass the two take turns: while one has the tensor cores, the other computes exponentials. Where the sums of dk and dv
are too large for one, both have the same keys: one computes p and sums dv, the other takes p and sums dk.

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
from maxlm.kernels import block_sizes
from maxlm.kernels.mask import NOTHING_SEEN, Mask, Visits, block_ranges, comparable_segments
from maxlm.kernels.shape import AttentionShape

MAX_HEAD_SIZE = 256
SIZE_STEP = 32
"""Head sizes are filled up with zeros to whole steps: TMA writes and wgmma reads tiles of 32 or 64 columns."""
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
        able = "flash_triton" if shape.dtype == "float32" else "chunked"
        return f"multiplies bfloat16, not {shape.dtype}; {able} takes that"
    if max(shape.key_size, shape.value_size) > MAX_HEAD_SIZE:
        sizes = f"{shape.key_size} (keys), {shape.value_size} (values)"
        return f"has head sizes up to {MAX_HEAD_SIZE}, not {sizes}; chunked has all"
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
      v_BSKH: values; their head size may differ from the keys'.
      mask: who sees whom.
      softcap: c turns a score s into c tanh(s / c); None leaves it.
      device_kind: one of Hopper's; they differ in nothing that matters here.
      interpret: parameters of Pallas' simulated GPU.

    Returns:
      out (B, T, N, H_v) in bf16 and lse (B, N, T) fp32.
    """
    del device_kind
    problem = _Problem.of(q_BTNH, k_BSKH, v_BSKH, mask, softcap, "forward")
    q, k, v = map(_fill_up, (q_BTNH, k_BSKH, v_BSKH))
    batch, length, num_heads, _ = q.shape
    ranges = block_ranges(mask, _TILE, problem.block).of_queries
    segments = comparable_segments(mask, _TILE, problem.block)
    scratch = {
        "q_tile": problem.matrices(COMPUTING, ROWS, problem.key_size),
        "lse_tile": plgpu.SMEM((COMPUTING, ROWS), jnp.float32),
        **problem.rings({"k": problem.key_size, "v": problem.value_size}, {"segment": jnp.int32}),
        "q_ready": plgpu.Barrier(num_barriers=COMPUTING),
        "turn": plgpu.Barrier(num_arrivals=COMPUTING),
    }
    lse_shape = batch, num_heads, ranges.shape[1] * _TILE
    outputs = _like(q, problem.value_size), jax.ShapeDtypeStruct(lse_shape, jnp.float32)
    out, lse = _call(_forward_kernel, problem, mask, ranges, (*segments, q, k, v), outputs, scratch, interpret)
    return out[..., : v_BSKH.shape[3]], lse[:, :, :length]


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
    arrays = *map(_fill_up, (q_BTNH, k_BSKH, v_BSKH, d_out_BTNH)), lse, delta
    of = functools.partial(_Problem.of, q_BTNH, k_BSKH, v_BSKH, mask, softcap)
    gradients = *_d_q(of("d_q"), arrays, mask, interpret), *_d_kv(of("d_kv"), arrays, mask, interpret)
    d_q, d_k, d_v = (x[..., : y.shape[3]] for x, y in zip(gradients, (q_BTNH, k_BSKH, v_BSKH), strict=True))
    return d_q, d_k, d_v


def _d_q(problem: _Problem, arrays: Sequence[jax.Array], mask: Mask, interpret: Any) -> tuple[jax.Array, ...]:
    ranges = block_ranges(mask, _TILE, problem.block).of_queries
    segments = comparable_segments(mask, _TILE, problem.block)
    scratch = {
        "q_tile": problem.matrices(COMPUTING, ROWS, problem.key_size),
        "d_out_tile": problem.matrices(COMPUTING, ROWS, problem.value_size),
        **problem.rings({"k": problem.key_size, "v": problem.value_size}, {"segment": jnp.int32}),
        "q_ready": plgpu.Barrier(num_arrivals=2, num_barriers=COMPUTING),
    }
    inputs = *segments, *arrays
    return _call(_d_q_kernel, problem, mask, ranges, inputs, (_like(arrays[0]),), scratch, interpret)


def _d_kv(problem: _Problem, arrays: Sequence[jax.Array], mask: Mask, interpret: Any) -> tuple[jax.Array, ...]:
    tiles = 1 if problem.apart else COMPUTING
    ranges = block_ranges(mask, problem.block, tiles * ROWS).of_keys
    # Whole tiles of both, as lse and delta have.
    segments = comparable_segments(mask, _TILE, _TILE)
    vectors = {"segment": jnp.int32, "lse": jnp.float32, "delta": jnp.float32}
    scratch = {
        "k_tile": problem.matrices(tiles, ROWS, problem.key_size),
        "v_tile": problem.matrices(tiles, ROWS, problem.value_size),
        **problem.rings({"q": problem.key_size, "d_out": problem.value_size}, vectors),
        "kv_ready": plgpu.Barrier(num_arrivals=2, num_barriers=tiles),
    }
    if problem.apart:
        scratch["p_tile"] = _matrices(1, ROWS, 32, problem.block, jnp.float32)
        scratch |= {"p_ready": plgpu.Barrier(), "p_taken": plgpu.Barrier()}
    kernel = _d_kv_apart_kernel if problem.apart else _d_kv_kernel
    outputs = tuple(map(_like, arrays[1:3]))
    return _call(kernel, problem, mask, ranges, (*segments, *arrays), outputs, scratch, interpret)


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What is static in a kernel."""

    block: int
    apart: bool
    groups: int
    key_size: int
    value_size: int
    scale: float
    causal: bool
    window: int | None
    softcap: float | None

    @classmethod
    def of(cls, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, softcap: float | None, kernel: str) -> _Problem:
        key_size, value_size = (x.shape[3] + -x.shape[3] % SIZE_STEP for x in (k, v))
        blocks = block_sizes.hopper(key_size, value_size)
        groups, scale = q.shape[2] // k.shape[2], 1 / math.sqrt(k.shape[3])
        chosen = getattr(blocks, kernel), blocks.apart, groups, key_size, value_size, scale
        return cls(*chosen, mask.causal, mask.window, softcap)

    def matrices(self, count: int, rows: int, columns: int) -> Any:
        """Return shared memory for bf16 matrices, in tiles that divide whatever is multiplied with whatever."""
        return _matrices(count, rows, math.gcd(64, self.block, self.key_size, self.value_size), columns)

    def rings(self, matrices: dict[str, int], vectors: dict[str, Any]) -> dict[str, Any]:
        """Return buffers for the two matrices of a block, by head size, and for vectors, and their barriers.

        Of three vectors the last arrives with the second matrix, the others with the first.
        """
        late = len(vectors) // 3
        arrivals = 1 + len(vectors) - late, 1 + late
        barrier = functools.partial(plgpu.Barrier, num_barriers=STAGES)
        return {
            **{f"{name}_ring": self.matrices(STAGES, self.block, size) for name, size in matrices.items()},
            **{f"{name}_ring": plgpu.SMEM((STAGES, self.block), dtype) for name, dtype in vectors.items()},
            **{f"{name}_ready": barrier(num_arrivals=n) for name, n in zip(matrices, arrivals, strict=True)},
            **{f"{name}_free": barrier(num_arrivals=COMPUTING) for name in matrices},
        }

    def scores(self, products: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Turn q k^T into scores, as exponents of 2, and the slope of the cap, None without one."""
        if self.softcap is None:
            return products * (self.scale * _LOG2_E), None
        # The GPU's own approximation of tanh has only 11 bits.
        capped = 1 - 2 / (1 + jnp.exp2(products * (2 * _LOG2_E * self.scale / self.softcap)))
        return capped * (self.softcap * _LOG2_E), 1 - capped * capped

    def weigh_keys(
        self, products: jax.Array, shared: SimpleNamespace, slot: jax.Array, kv_segment: jax.Array, to_block: jax.Array,
        masked: bool,
    ) -> tuple[jax.Array, jax.Array]:  # fmt: skip
        """Turn k q^T of a block of queries into p in bf16, and p in fp32 times the slope of the cap."""
        scores, slope = self.scores(products)
        p = jnp.exp2(scores - lax.broadcast_in_dim(_load(shared.lse_ring.at[slot], axis=1), scores.shape, [1]))
        if masked:
            q_segment = _load(shared.segment_ring.at[slot], axis=1)
            p = self.hide(p, 0.0, q_segment, kv_segment, to_block, q_axis=1)
        return p.astype(jnp.bfloat16), p if slope is None else p * slope

    def hide(
        self, values: jax.Array, hidden: float, q_segment: jax.Array, kv_segment: jax.Array, distance: jax.Array,
        *, q_axis: int,
    ) -> jax.Array:  # fmt: skip
        """Replace the values of pairs that do not see each other; `distance`: from the first key to the first query.

        Forward, these are scores; backward p, for by then fewer other values are in registers.
        """
        vectors = (q_segment, kv_segment) if q_axis == 0 else (kv_segment, q_segment)
        across = [lax.broadcast_in_dim(vector, values.shape, [axis]) for axis, vector in enumerate(vectors)]
        values = jnp.where(across[0] == across[1], values, hidden)
        iota = functools.partial(plgpu.broadcasted_iota, jnp.int32, values.shape, layout=plgpu.Layout.WGMMA)
        # The distance goes to the rows, of which a thread has two.
        q_index, kv_index = (iota(0) + distance, iota(1)) if q_axis == 0 else (iota(1), iota(0) - distance)
        if self.causal:
            values = jnp.where(q_index >= kv_index, values, hidden)
        if self.window is not None:
            near = q_index - self.window < kv_index if q_axis == 0 else q_index < kv_index + self.window
            values = jnp.where(near, values, hidden)
        return values


def _call(
    kernel: Callable[..., None],
    problem: _Problem,
    mask: Mask,
    ranges: jax.Array,
    arrays: Sequence[jax.Array],
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    scratch: dict[str, Any],
    interpret: Any,
) -> tuple[jax.Array, ...]:
    """Run a kernel on every head and batch row of its first output, and every block with a range."""
    arrays = (jnp.reshape(mask.q_start - mask.kv_start, 1).astype(jnp.int32), ranges, *arrays)
    axes = varying_axes(*arrays)
    call = plgpu.kernel(
        lambda *references, **shared: kernel(problem, *references, SimpleNamespace(**shared)),
        out_type=outputs,
        scratch_types=scratch,
        grid=(outputs[0].shape[2], ranges.shape[1], outputs[0].shape[0]),
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
    batch, head = (lax.axis_index(name) for name in ("batch", "head"))
    # The last rows of a causal mask are the longest: they start first.
    row = ranges.shape[1] - 1 - lax.axis_index("block")

    def compute(warpgroup: jax.Array) -> None:
        queries = pl.ds((row * COMPUTING + warpgroup) * ROWS, ROWS)
        q_ready = shared.q_ready.at[warpgroup]
        plgpu.copy_gmem_to_smem(q.at[batch, queries, head], shared.q_tile.at[warpgroup], q_ready)
        q_segment = _load(q_segments.at[batch, queries], axis=0)
        distance = offset[0] + queries.start
        plgpu.barrier_wait(q_ready)
        pl.when(warpgroup == 1)(lambda: _swap(shared.turn))

        def visit(n: jax.Array, carry: Any, *, block: jax.Array, masked: bool, **_: Any) -> Any:
            sums, peak, total = carry
            slot = lax.rem(n, jnp.int32(STAGES))
            q_tile = shared.q_tile.at[_opaque(warpgroup)]
            plgpu.barrier_wait(shared.k_ready.at[slot])
            products = _multiply(q_tile, shared.k_ring.at[slot], then=functools.partial(_swap, shared.turn))
            scores, _ = problem.scores(products)
            if masked:
                kv_segment = _load(shared.segment_ring.at[slot], axis=1)
                to_block = distance - block * problem.block
                scores = problem.hide(scores, -jnp.inf, q_segment, kv_segment, to_block, q_axis=0)
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

        carry = _zeros(problem.value_size), _zeros() + _FLOOR, _zeros()
        sums, peak, total = Visits.of(ranges, batch, row).walk(visit, carry)
        pl.when(warpgroup == 0)(lambda: _swap(shared.turn))
        # Both are done: the ring is free for what goes out, which may be wider than the queries.
        _swap(shared.turn)
        seen = total > 0
        total = jnp.where(seen, total, 1.0)
        out_tile, lse_tile = shared.v_ring.at[warpgroup, pl.ds(0, ROWS)], shared.lse_tile.at[warpgroup]
        out_tile[...] = (sums * lax.broadcast_in_dim(1 / total, sums.shape, [0])).astype(jnp.bfloat16)
        lse_tile[...] = jnp.where(seen, (peak + jnp.log(total) * _LOG2_E) / _LOG2_E, NOTHING_SEEN)
        _write((out_tile, out.at[batch, queries, head]), (lse_tile, lse.at[batch, head, queries]))

    sources = _keys_and_values(problem, batch, head, k, v, kv_segments)
    _share_work(compute, lambda: _fetch_blocks(Visits.of(ranges, batch, row), sources, shared))


def _d_q_kernel(problem, offset, ranges, q_segments, kv_segments, q, k, v, d_out, lse, delta, d_q, shared):  # type: ignore[no-untyped-def]
    batch, head = (lax.axis_index(name) for name in ("batch", "head"))
    row = ranges.shape[1] - 1 - lax.axis_index("block")

    def compute(warpgroup: jax.Array) -> None:
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
            own = _opaque(warpgroup)
            keys, values = shared.k_ring.at[slot], shared.v_ring.at[slot]

            def weigh(products: jax.Array) -> jax.Array:
                scores, slope = problem.scores(products)
                p = jnp.exp2(scores - lax.broadcast_in_dim(q_lse, scores.shape, [0]))
                if masked:
                    kv_segment = _load(shared.segment_ring.at[slot], axis=1)
                    to_block = distance - block * problem.block
                    p = problem.hide(p, 0.0, q_segment, kv_segment, to_block, q_axis=0)
                return p if slope is None else p * slope

            plgpu.barrier_wait(shared.k_ready.at[slot])
            plgpu.barrier_wait(shared.v_ready.at[slot])
            p, d_p = _multiply_both((shared.q_tile.at[own], keys), (shared.d_out_tile.at[own], values), weigh)
            plgpu.barrier_arrive(shared.v_free.at[slot])
            d_s = (p * (d_p - lax.broadcast_in_dim(q_delta, p.shape, [0]))).astype(jnp.bfloat16)
            d_q = _accumulate(d_q, d_s, keys)
            plgpu.barrier_arrive(shared.k_free.at[slot])
            return d_q

        sums = Visits.of(ranges, batch, row).walk(visit, _zeros(problem.key_size))
        q_tile[...] = (sums * problem.scale).astype(jnp.bfloat16)
        _write((q_tile, d_q.at[batch, queries, head]))

    sources = _keys_and_values(problem, batch, head, k, v, kv_segments)
    _share_work(compute, lambda: _fetch_blocks(Visits.of(ranges, batch, row), sources, shared))


def _d_kv_kernel(problem, offset, ranges, q_segments, kv_segments, q, k, v, d_out, lse, delta, d_k, d_v, shared):  # type: ignore[no-untyped-def]
    # Works on transposed scores (keys, queries), so that they go into the next product as they come out of the last.
    batch, kv_head, column = (lax.axis_index(name) for name in ("batch", "head", "block"))

    def compute(warpgroup: jax.Array) -> None:
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
            own = _opaque(warpgroup)

            plgpu.barrier_wait(shared.q_ready.at[slot])
            products = _multiply(shared.k_tile.at[own], queries)
            to_block = distance + block * problem.block
            weights, p = problem.weigh_keys(products, shared, slot, kv_segment, to_block, masked)
            plgpu.barrier_wait(shared.d_out_ready.at[slot])
            # One after the other: both at once would not fit into the registers.
            sums_v = _accumulate(sums_v, weights, d_outs)
            d_p = _multiply(shared.v_tile.at[own], d_outs)
            q_delta = _load(shared.delta_ring.at[slot], axis=1)
            plgpu.barrier_arrive(shared.d_out_free.at[slot])
            d_s = (p * (d_p - lax.broadcast_in_dim(q_delta, p.shape, [1]))).astype(jnp.bfloat16)
            sums_k = _accumulate(sums_k, d_s, queries)
            plgpu.barrier_arrive(shared.q_free.at[slot])
            return sums_k, sums_v

        carry = _zeros(problem.key_size), _zeros(problem.value_size)
        sums_k, sums_v = Visits.of(ranges, batch, column, problem.groups).walk(visit, carry)
        k_tile[...] = (sums_k * problem.scale).astype(jnp.bfloat16)
        v_tile[...] = sums_v.astype(jnp.bfloat16)
        _write((k_tile, d_k.at[batch, keys, kv_head]), (v_tile, d_v.at[batch, keys, kv_head]))

    sources = _queries(problem, batch, kv_head, q, d_out, q_segments, lse, delta)
    visits = functools.partial(Visits.of, ranges, batch, column, problem.groups)
    _share_work(compute, lambda: _fetch_blocks(visits(), sources, shared))


def _d_kv_apart_kernel(problem, offset, ranges, q_segments, kv_segments, q, k, v, d_out, lse, delta, d_k, d_v, shared):  # type: ignore[no-untyped-def]
    # As above, but both warpgroups have the same keys: one computes p and sums d_v, the other takes p and sums d_k.
    batch, kv_head, column = (lax.axis_index(name) for name in ("batch", "head", "block"))
    keys = pl.ds(column * ROWS, ROWS)
    visits = functools.partial(Visits.of, ranges, batch, column, problem.groups)

    def sum_values() -> None:
        k_tile, v_tile, ready = shared.k_tile.at[0], shared.v_tile.at[0], shared.kv_ready.at[0]
        plgpu.copy_gmem_to_smem(k.at[batch, keys, kv_head], k_tile, ready)
        kv_segment = _load(kv_segments.at[batch, keys], axis=0)
        distance = offset[0] - keys.start
        plgpu.barrier_wait(ready)

        def visit(n: jax.Array, sums: jax.Array, *, block: jax.Array, masked: bool, **_: Any) -> jax.Array:
            slot = lax.rem(n, jnp.int32(STAGES))
            plgpu.barrier_wait(shared.q_ready.at[slot])
            products = _multiply(shared.k_tile.at[_opaque(jnp.int32(0))], shared.q_ring.at[slot])
            to_block = distance + block * problem.block
            weights, p = problem.weigh_keys(products, shared, slot, kv_segment, to_block, masked)
            plgpu.barrier_arrive(shared.q_free.at[slot])
            pl.when(n > 0)(lambda: plgpu.barrier_wait(shared.p_taken))
            shared.p_tile[0, ...] = p
            plgpu.barrier_arrive(shared.p_ready)
            plgpu.barrier_wait(shared.d_out_ready.at[slot])
            sums = _accumulate(sums, weights, shared.d_out_ring.at[slot])
            plgpu.barrier_arrive(shared.d_out_free.at[slot])
            return sums

        sums = visits().walk(visit, _zeros(problem.value_size))
        pl.when(visits().count > 0)(lambda: plgpu.barrier_wait(shared.p_taken))
        v_tile[...] = sums.astype(jnp.bfloat16)
        _write((v_tile, d_v.at[batch, keys, kv_head]))

    def sum_keys() -> None:
        k_tile, v_tile, ready = shared.k_tile.at[0], shared.v_tile.at[0], shared.kv_ready.at[0]
        plgpu.copy_gmem_to_smem(v.at[batch, keys, kv_head], v_tile, ready)
        plgpu.barrier_wait(ready)

        def visit(n: jax.Array, sums: jax.Array, **_: Any) -> jax.Array:
            slot = lax.rem(n, jnp.int32(STAGES))
            plgpu.barrier_wait(shared.d_out_ready.at[slot])
            d_p = _multiply(v_tile, shared.d_out_ring.at[slot])
            d_p -= lax.broadcast_in_dim(_load(shared.delta_ring.at[slot], axis=1), d_p.shape, [1])
            plgpu.barrier_arrive(shared.d_out_free.at[slot])
            plgpu.barrier_wait(shared.p_ready)
            d_s = (shared.p_tile[0, ...] * d_p).astype(jnp.bfloat16)
            plgpu.barrier_arrive(shared.p_taken)
            plgpu.barrier_wait(shared.q_ready.at[slot])
            sums = _accumulate(sums, d_s, shared.q_ring.at[slot])
            plgpu.barrier_arrive(shared.q_free.at[slot])
            return sums

        sums = visits().walk(visit, _zeros(problem.key_size))
        k_tile[...] = (sums * problem.scale).astype(jnp.bfloat16)
        _write((k_tile, d_k.at[batch, keys, kv_head]))

    def compute(warpgroup: jax.Array) -> None:
        pl.when(warpgroup == 0)(sum_values)
        pl.when(warpgroup == 1)(sum_keys)

    sources = _queries(problem, batch, kv_head, q, d_out, q_segments, lse, delta)
    _share_work(compute, lambda: _fetch_blocks(visits(), sources, shared))


def _share_work(compute: Callable[[jax.Array], None], fetch: Callable[[], None]) -> None:
    """Let each warpgroup do its part.

    What both need, each computes itself: kept over the change of registers it would spill, for one has few of them.
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


def _keys_and_values(problem, batch, head, k, v, kv_segments):  # type: ignore[no-untyped-def]
    """Return sources(block, group) for `_fetch_blocks`, for a block of queries."""
    kv_head = lax.div(head, jnp.int32(problem.groups))

    def sources(block: jax.Array, group: Any) -> dict[str, Any]:
        del group
        keys = pl.ds(block * problem.block, problem.block)
        return {
            "k": {"k": k.at[batch, keys, kv_head], "segment": kv_segments.at[batch, keys]},
            "v": {"v": v.at[batch, keys, kv_head]},
        }

    return sources


def _queries(problem, batch, kv_head, q, d_out, q_segments, lse, delta):  # type: ignore[no-untyped-def]
    """Return sources(block, group) for `_fetch_blocks`, for a block of keys."""

    def sources(block: jax.Array, group: Any) -> dict[str, Any]:
        queries = pl.ds(block * problem.block, problem.block)
        head = kv_head * problem.groups + group
        first = {"q": q.at[batch, queries, head], "segment": q_segments.at[batch, queries]}
        return {
            "q": {**first, "lse": lse.at[batch, head, queries]},
            "d_out": {"d_out": d_out.at[batch, queries, head], "delta": delta.at[batch, head, queries]},
        }

    return sources


def _fetch_blocks(visits: Visits, sources: Callable[..., Any], shared: SimpleNamespace) -> None:
    """Bring the blocks of all visits into the rings, as soon as there is room.

    `sources(block, group)` says for each of the two matrices what arrives with it: {ring: reference}.
    """
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
    free = [barrier for name, barrier in rings.items() if name.endswith("_free")]

    def finish(slot: jax.Array, _: None) -> None:
        for barrier in free:
            plgpu.barrier_wait(barrier.at[slot])

    lax.fori_loop(0, jnp.minimum(visits.count, STAGES), finish, None)


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


def _opaque(index: jax.Array) -> jax.Array:
    """Hide from the compiler that an index is the same in every visit.

    It would keep the addresses of all parts of a tile in registers, which then spill.
    """
    return lax.optimization_barrier(index)


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


def _like(x: jax.Array, size: int | None = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*x.shape[:3], size or x.shape[3]), x.dtype)


def _fill_up(x: jax.Array) -> jax.Array:
    """Fill heads up to what the kernels take; zeros add nothing to any product."""
    return jnp.pad(x, (*((0, 0),) * 3, (0, -x.shape[3] % SIZE_STEP)))


def _matrices(count: int, rows: int, tile: int, columns: int, dtype: Any = jnp.bfloat16) -> Any:
    """Return shared memory for matrices, laid out in tiles of 8 rows, as wgmma reads them."""
    swizzle = tile * jnp.dtype(dtype).itemsize
    transforms = plgpu.TilingTransform((8, tile)), plgpu.SwizzleTransform(swizzle)  # type: ignore[abstract]  # jax 0.11
    return plgpu.SMEM((count, rows, columns), dtype, transforms=transforms)
