"""Flash attention for NVIDIA GPUs from Ampere on: Pallas kernels that Triton compiles.

FlashAttention-2 (arXiv:2307.08691). One program owns a block of queries (forward, dq) or of keys
(dk and dv, all query heads of the group one after the other, so that nothing is repeated in memory
and no atomics are needed: two runs give the same bits) and walks over the blocks that it can see
(`mask.block_ranges`). Blocks in which every pair is visible skip the mask. Scores, sums and
accumulators are fp32; fp32 inputs are multiplied as three TF32 products, which keeps about 21 bits.

Triton's arrays have sizes that are powers of two: a head of size 192 is worked on as pieces of 128
and 64.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from maxlm.devices import KIB, find_gpu
from maxlm.jax_versions import shape_like, vary_over, varying_axes
from maxlm.kernels.mask import NOTHING_SEEN, Mask, Visits, block_ranges, words
from maxlm.kernels.shape import DISTANCE_SETTINGS, PLAIN, AttentionShape, Scoring

MAX_HEAD_SIZE = 256
AMPERE = 8.0
"""Compute capability."""
LARGE_SHARED_MEMORY = 160 * KIB
"""From there on the larger tiles fit."""

_LOG2_E = math.log2(math.e)
_FLOOR = NOTHING_SEEN / 100
"""Where a row's maximum starts: below every score; finite, so that a hidden score of -inf becomes
0.
"""

Pieces = tuple[jax.Array, ...]
"""A block (rows, head size) in pieces along the head size."""


class Tile(NamedTuple):
    """Block sizes in tokens, and how Triton spreads and pipelines a program."""

    q_block: int
    kv_block: int
    num_warps: int
    num_stages: int


class Tiles(NamedTuple):
    """One tile for each of the three kernels."""

    forward: Tile
    d_q: Tile
    d_kv: Tile


def unsupported(shape: AttentionShape) -> str | None:
    """Return why these kernels cannot do it, or None."""
    gpu = find_gpu(shape.device_kind)
    if gpu is None or gpu.capability < AMPERE:
        return f"needs an NVIDIA GPU, Ampere or newer, not {shape.device_kind}; chunked runs everywhere"
    if max(shape.key_size, shape.value_size) > MAX_HEAD_SIZE:
        return (
            f"has head sizes up to {MAX_HEAD_SIZE}, not {shape.key_size} (keys), {shape.value_size} "
            "(values); chunked has all"
        )
    if shape.dtype not in ("bfloat16", "float32"):
        return f"takes bfloat16 and float32, not {shape.dtype}; chunked takes every type"
    if shape.by_distance == "table":
        return f"adds no table to scores by distance, {DISTANCE_SETTINGS['table']}; chunked does"
    return None


def choose_tiles(dtype: Any, head_size: int, device_kind: str) -> Tiles:
    """Return tiles that fit the registers and the shared memory; `head_size` is the larger of keys'
    and values'.
    """
    gpu = find_gpu(device_kind)
    large = gpu is not None and gpu.shared_memory >= LARGE_SHARED_MEMORY
    if dtype == jnp.float32:
        if head_size <= 64:
            return Tiles(*(Tile(64, 32, 4, 2),) * 3)
        return Tiles(Tile(64, 32, 4, 2), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1))
    if head_size <= 64:
        return Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2))
    if head_size <= 128:
        stages = 3 if large else 2
        return Tiles(Tile(128, 64, 8, stages), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2))
    if large:
        return Tiles(Tile(128, 32, 8, 2), Tile(64, 32, 8, 2), Tile(32, 64, 8, 2))
    return Tiles(Tile(64, 32, 4, 2), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1))


def forward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring = PLAIN,
    device_kind: str = "NVIDIA H100 80GB HBM3",
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Compute softmax(scores) v; see `chunked_attention.forward`.

    Args:
      q_BTNH: queries; N is a multiple of K.
      k_BSKH: keys.
      v_BSKH: values; their head size may differ from the keys'.
      mask: who sees whom.
      scoring: how scores are made, without a table.
      device_kind: the GPU; chooses the block sizes.
      interpret: compute what the kernel would, slowly, on any device.

    Returns:
      out (B, T, N, H_v) in the queries' dtype and lse (B, N, T) fp32.
    """
    batch, length, num_heads, _ = q_BTNH.shape
    problem = _Problem.of(q_BTNH, k_BSKH, v_BSKH, scoring, "forward", device_kind, interpret)
    out = jax.ShapeDtypeStruct((batch, length, num_heads, v_BSKH.shape[3]), q_BTNH.dtype)
    lse = jax.ShapeDtypeStruct((batch, num_heads, length), jnp.float32)
    inputs = {"q": q_BTNH, "k": k_BSKH, "v": v_BSKH, **problem.slopes(scoring)}
    return _call(_forward_kernel, problem, mask, inputs, (out, lse))


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
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the gradients of q, k and v; formulas in `chunked_attention.backward`.

    `out` and `lse` may be of a larger softmax than this call's keys (ring attention).
    """
    delta_BTN = jnp.sum(d_out_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32), axis=3)
    inputs = {"q": q_BTNH, "k": k_BSKH, "v": v_BSKH, "d_out": d_out_BTNH}
    inputs |= {"lse": lse_BNT * _LOG2_E, "delta": delta_BTN.mT}
    of = functools.partial(_Problem.of, q_BTNH, k_BSKH, v_BSKH, scoring)
    inputs |= of("d_q", device_kind, interpret).slopes(scoring)
    d_q, d_k, d_v = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BTNH, k_BSKH, v_BSKH))
    (d_q,) = _call(_d_q_kernel, of("d_q", device_kind, interpret), mask, inputs, (d_q,))
    d_k, d_v = _call(_d_kv_kernel, of("d_kv", device_kind, interpret), mask, inputs, (d_k, d_v))
    return d_q, d_k, d_v


@dataclasses.dataclass(frozen=True)
class _Problem:
    """What is static in a kernel."""

    tile: Tile
    batch: int
    length: int
    kv_length: int
    num_heads: int
    num_kv_heads: int
    key_size: int
    value_size: int
    scale: float
    softcap: float | None
    interpret: bool

    @classmethod
    def of(
        cls,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        scoring: Scoring,
        kernel: str,
        device_kind: str,
        interpret: bool,
    ) -> _Problem:
        tiles = choose_tiles(q.dtype, max(k.shape[3], v.shape[3]), device_kind)
        lengths_and_heads = (
            q.shape[0],
            q.shape[1],
            k.shape[1],
            q.shape[2],
            k.shape[2],
            k.shape[3],
            v.shape[3],
        )
        scale = scoring.scale_of(k.shape[3])
        return cls(getattr(tiles, kernel), *lengths_and_heads, scale, scoring.softcap, interpret)

    @property
    def groups(self) -> int:
        return self.num_heads // self.num_kv_heads

    def dot(self, x: jax.Array, y: jax.Array, *, transpose: bool = False) -> jax.Array:
        """Return x y or, transposed, x y^T in fp32."""
        precision: Any = None
        if self.interpret:
            # The CPU has no TF32, and not all of bf16; fp32 products of bf16 numbers are the same.
            x, y, precision = x.astype(jnp.float32), y.astype(jnp.float32), lax.Precision.HIGHEST
        elif x.dtype == jnp.float32:
            precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        dimensions = (((1,), (1 if transpose else 0,)), ((), ()))
        return lax.dot_general(
            x, y, dimensions, precision=precision, preferred_element_type=jnp.float32
        )

    def dot_heads(self, xs: Pieces, ys: Pieces) -> jax.Array:
        """Return x y^T of two blocks in pieces: a sum over the head size."""
        return sum(self.dot(x, y, transpose=True) for x, y in zip(xs, ys, strict=True))  # type: ignore[return-value]

    @property
    def exponent(self) -> float:
        """Return what scores are multiplied with to become exponents of 2."""
        return (self.scale if self.softcap is None else self.softcap) * _LOG2_E

    def scores(self, products: jax.Array, fall: jax.Array | None) -> jax.Array:
        """Turn q k^T into scores in units of the scale or the cap; see `_fall`."""
        if self.softcap is not None:
            return jnp.tanh(products * (self.scale / self.softcap))
        return products if fall is None else products - fall

    def slopes(self, scoring: Scoring) -> dict[str, jax.Array]:
        """Return how much scores fall by distance, in units of the scale, if they do: (N,)."""
        if scoring.slopes_N is None:
            return {}
        return {"slopes": scoring.slopes_N.astype(jnp.float32) / self.scale}


def _call(
    kernel: Callable[..., None],
    problem: _Problem,
    mask: Mask,
    inputs: dict[str, jax.Array],
    outputs: tuple[jax.ShapeDtypeStruct, ...],
) -> Any:
    """Run a kernel on every (block, head, batch), blocks of queries or, for dk and dv, of keys with
    their KV head.

    A kernel's references are what one head of one batch row sees: (T, H), (T,), (groups, T, H) and
    so on; of slopes a number, or one for each head of the group.
    """
    tile, for_keys = problem.tile, kernel is _d_kv_kernel
    ranges = block_ranges(mask, tile.q_block, tile.kv_block)[for_keys]
    masks = words(mask, tile.q_block, tile.kv_block)
    heads = problem.num_kv_heads if for_keys else problem.num_heads
    if "slopes" in inputs:
        inputs = inputs | {"slopes": inputs["slopes"].reshape(heads, -1)}
    arrays = (ranges, *masks, *inputs.values())
    axes = varying_axes(*arrays)

    def kv_head(head: jax.Array) -> jax.Array:
        return head if for_keys else lax.div(head, jnp.int32(problem.groups))

    def spec(name: str, array: Any) -> pl.BlockSpec:
        shape = array.shape
        if name == "slopes":
            return pl.BlockSpec((None, shape[1]), lambda _, n, __: (n, 0))
        if name in ("k", "v") or (for_keys and name == "out"):
            return pl.BlockSpec(
                (None, shape[1], None, shape[3]), lambda _, n, b: (b, 0, kv_head(n), 0)
            )
        count = problem.groups if for_keys else None
        if len(shape) == 4:
            return pl.BlockSpec((None, shape[1], count, shape[3]), lambda _, n, b: (b, 0, n, 0))
        return pl.BlockSpec((None, count, shape[2]), lambda _, n, b: (b, n, 0))

    def body(*refs: Any) -> None:
        by_name = dict(zip(inputs, refs[3:], strict=False))
        slopes = by_name.pop("slopes", None)
        kernel(problem, *refs[:3], *by_name.values(), *refs[3 + len(inputs) :], slopes=slopes)

    return pl.pallas_call(
        body,
        grid=(ranges.shape[1], heads, problem.batch),
        in_specs=[
            *(
                pl.BlockSpec((None, *x.shape[1:]), lambda *at: (at[2], 0, 0))
                for x in (ranges, *masks)
            ),
            *map(spec, inputs, inputs.values()),
        ],
        out_specs=[spec("out", x) for x in outputs],
        out_shape=[shape_like(x.shape, x.dtype, *arrays) for x in outputs],
        compiler_params=plgpu.CompilerParams(num_warps=tile.num_warps, num_stages=tile.num_stages),
        interpret=problem.interpret,
        name=f"flash_triton{kernel.__name__}",
    )(*(vary_over(x, axes) for x in arrays))


def _forward_kernel(problem: _Problem, ranges, q_words, kv_words, q, k, v, out, lse, slopes):  # type: ignore[no-untyped-def]
    tile = problem.tile
    # The last rows of a causal mask are the longest: they start first.
    row = pl.num_programs(0) - 1 - pl.program_id(0)
    q_start = row * tile.q_block
    q_pieces = _load(q, q_start, tile.q_block)

    def visit(
        _: Any, carry: tuple[Any, ...], *, block: jax.Array, masked: bool, **__: Any
    ) -> tuple[Any, ...]:
        sums, peak, total = carry
        start = block * tile.kv_block
        products = problem.dot_heads(q_pieces, _load(k, start, tile.kv_block))
        fall = _fall(problem, slopes, 0, q_words, kv_words, (q_start, start))
        scores = problem.scores(products, fall)
        if masked:
            seen = _visible(problem, q_words, kv_words, q_start, start)
            scores = jnp.where(seen, scores, -jnp.inf)
        new_peak = jnp.maximum(peak, jnp.max(scores, axis=1) * problem.exponent)
        p = jnp.exp2(scores * problem.exponent - new_peak[:, None])
        shrink = jnp.exp2(peak - new_peak)
        values = _load(v, start, tile.kv_block)
        sums = tuple(
            x * shrink[:, None] + problem.dot(p.astype(y.dtype), y)
            for x, y in zip(sums, values, strict=True)
        )
        return sums, new_peak, total * shrink + jnp.sum(p, axis=1)

    sums = tuple(
        jnp.zeros((tile.q_block, width), jnp.float32) for _, width in _pieces(problem.value_size)
    )
    rows = jnp.zeros((tile.q_block,), jnp.float32)
    sums, peak, total = Visits.of(ranges, row).walk(visit, (sums, rows + _FLOOR, rows))
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    _store(out, q_start, tuple(x / total[:, None] for x in sums))
    _store_rows(lse, q_start, jnp.where(seen, (peak + jnp.log2(total)) / _LOG2_E, NOTHING_SEEN))


def _d_q_kernel(  # type: ignore[no-untyped-def]
    problem: _Problem, ranges, q_words, kv_words, q, k, v, d_out, lse, delta, d_q, slopes
):
    tile = problem.tile
    row = pl.num_programs(0) - 1 - pl.program_id(0)
    q_start = row * tile.q_block
    q_pieces, d_out_pieces = _load(q, q_start, tile.q_block), _load(d_out, q_start, tile.q_block)
    lse_rows, delta_rows = (_load_rows(x, q_start, tile.q_block)[:, None] for x in (lse, delta))

    def visit(_: Any, sums: Pieces, *, block: jax.Array, masked: bool, **__: Any) -> Pieces:
        start = block * tile.kv_block
        keys = _load(k, start, tile.kv_block)
        fall = _fall(problem, slopes, 0, q_words, kv_words, (q_start, start))
        scores = problem.scores(problem.dot_heads(q_pieces, keys), fall)
        p = jnp.exp2(scores * problem.exponent - lse_rows)
        if masked:
            p = jnp.where(_visible(problem, q_words, kv_words, q_start, start), p, 0.0)
        d_p = problem.dot_heads(d_out_pieces, _load(v, start, tile.kv_block))
        d_s = _d_scores(problem, p, d_p - delta_rows, scores).astype(q.dtype)
        return tuple(x + problem.dot(d_s, y) for x, y in zip(sums, keys, strict=True))

    sums = tuple(
        jnp.zeros((tile.q_block, width), jnp.float32) for _, width in _pieces(problem.key_size)
    )
    sums = Visits.of(ranges, row).walk(visit, sums)
    _store(d_q, q_start, tuple(x * problem.scale for x in sums))


def _d_kv_kernel(  # type: ignore[no-untyped-def]
    problem: _Problem, ranges, q_words, kv_words, q, k, v, d_out, lse, delta, d_k, d_v, slopes
):
    # Works on transposed scores (keys, queries), so that they go into the next product as they come
    # out of the last.
    tile = problem.tile
    column = pl.program_id(0)
    start = column * tile.kv_block
    keys, values = _load(k, start, tile.kv_block), _load(v, start, tile.kv_block)

    def visit(
        _: Any, sums: tuple[Pieces, Pieces], *, block: Any, group: Any, masked: bool
    ) -> tuple[Pieces, Pieces]:
        q_start, group = block * tile.q_block, jnp.int32(group)
        queries, d_outs = (
            _load(q, q_start, tile.q_block, group),
            _load(d_out, q_start, tile.q_block, group),
        )
        lse_rows, delta_rows = (
            _load_rows(x, q_start, tile.q_block, group)[None, :] for x in (lse, delta)
        )
        fall = _fall(problem, slopes, group, q_words, kv_words, (q_start, start), q_axis=1)
        scores = problem.scores(problem.dot_heads(keys, queries), fall)
        p = jnp.exp2(scores * problem.exponent - lse_rows)
        if masked:
            seen = _visible(problem, q_words, kv_words, q_start, start, transpose=True)
            p = jnp.where(seen, p, 0.0)
        d_v = tuple(
            x + problem.dot(p.astype(y.dtype), y) for x, y in zip(sums[1], d_outs, strict=True)
        )
        d_s = _d_scores(problem, p, problem.dot_heads(values, d_outs) - delta_rows, scores).astype(
            q.dtype
        )
        return tuple(x + problem.dot(d_s, y) for x, y in zip(sums[0], queries, strict=True)), d_v

    sums = tuple(tuple(jnp.zeros(x.shape, jnp.float32) for x in block) for block in (keys, values))
    sums_k, sums_v = Visits.of(ranges, column, groups=problem.groups).walk(visit, sums)
    _store(d_k, start, tuple(x * problem.scale for x in sums_k))
    _store(d_v, start, sums_v)


def _d_scores(problem: _Problem, p: jax.Array, d_p: jax.Array, scores: jax.Array) -> jax.Array:
    """Return the gradient of the scores, without the scale, which the sum is multiplied with."""
    d_s = p * d_p
    return d_s if problem.softcap is None else d_s * (1 - jnp.square(scores))


def _fall(
    problem: _Problem,
    slopes: Any,
    head: Any,
    q_words: Any,
    kv_words: Any,
    starts: tuple[jax.Array, jax.Array],
    *,
    q_axis: int = 0,
) -> jax.Array | None:
    """Return how much scores fall by distance, (q_block, kv_block) or with queries on another axis,
    or None if they do not.

    Where the key is hidden, the distance means nothing, but is finite.
    """
    if slopes is None:
        return None
    queries, keys = (
        pl.ds(start, block) for start, block in zip(starts, problem.tile[:2], strict=True)
    )
    rank = jnp.expand_dims(q_words[1, queries], 1 - q_axis)
    distance = rank - jnp.expand_dims(kv_words[1, keys], q_axis)
    return distance.astype(jnp.int32).astype(jnp.float32) * slopes[head]


def _visible(
    problem: _Problem,
    q_words: Any,
    kv_words: Any,
    q_start: jax.Array,
    kv_start: jax.Array,
    *,
    transpose: bool = False,
) -> jax.Array:
    """Return bool (q_block, kv_block), or transposed: which pairs see each other; see `mask.words`."""
    queries, keys = pl.ds(q_start, problem.tile.q_block), pl.ds(kv_start, problem.tile.kv_block)
    q_axis = int(transpose)
    q_segment, q_rank = (jnp.expand_dims(q_words[i, queries], 1 - q_axis) for i in range(2))
    kv_segment, kv_from, kv_count = (jnp.expand_dims(kv_words[i, keys], q_axis) for i in range(3))
    return (q_segment == kv_segment) & (q_rank - kv_from < kv_count)


def _pieces(size: int) -> list[tuple[int, int]]:
    """Cut a head size into (start, width), widths powers of two from 16 up: 80 = 64 + 16."""
    pieces, start, left = [], 0, -(-size // 16) * 16
    while left:
        width = 1 << left.bit_length() - 1
        pieces.append((start, width))
        start, left = start + width, left - width
    return pieces


def _load(ref: Any, start: jax.Array, count: int, group: jax.Array | None = None) -> Pieces:
    """Load rows [start, start + count), zeros beyond the array."""
    return tuple(
        plgpu.load(view, mask=mask, other=None if mask is None else 0)
        for view, mask in _views(ref, start, count, group)
    )


def _store(ref: Any, start: jax.Array, pieces: Pieces) -> None:
    for piece, (view, mask) in zip(
        pieces, _views(ref, start, pieces[0].shape[0], None), strict=True
    ):
        plgpu.store(view, piece.astype(ref.dtype), mask=mask)


def _views(
    ref: Any, start: jax.Array, count: int, group: jax.Array | None
) -> Iterator[tuple[Any, jax.Array | None]]:
    """Yield each piece of rows [start, start + count) and which of its elements exist, None for
    all.
    """
    length, size = ref.shape[0], ref.shape[-1]
    for first, width in _pieces(size):
        mask = None
        if length % count:
            mask = (start + lax.broadcasted_iota(jnp.int32, (count, width), 0)) < length
        if first + width > size:
            inside = first + lax.broadcasted_iota(jnp.int32, (count, width), 1) < size
            mask = inside if mask is None else mask & inside
        index = (pl.ds(start, count), pl.ds(first, width))
        yield ref.at[index if group is None else (index[0], group, index[1])], mask


def _load_rows(ref: Any, start: jax.Array, count: int, group: jax.Array | None = None) -> jax.Array:
    rows = pl.ds(start, count)
    mask = (
        start + jnp.arange(count, dtype=jnp.int32) < ref.shape[-1]
        if ref.shape[-1] % count
        else None
    )
    return plgpu.load(
        ref.at[rows if group is None else (group, rows)],
        mask=mask,
        other=None if mask is None else 0.0,
    )


def _store_rows(ref: Any, start: jax.Array, rows: jax.Array) -> None:
    count = rows.shape[0]
    mask = (
        start + jnp.arange(count, dtype=jnp.int32) < ref.shape[0] if ref.shape[0] % count else None
    )
    plgpu.store(ref.at[pl.ds(start, count)], rows, mask=mask)
