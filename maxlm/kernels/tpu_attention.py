"""Flash attention on TPUs, forward and backward, by Mosaic kernels: see
`maxlm.kernels.tpu_kernels`.

Here arrays are laid out for the kernels (heads before tokens, whole blocks), and it is worked out
which blocks of keys a block of queries sees. What fills the last block has segment 0 where it is
keys, which nobody sees, and takes part in no sum where it is queries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.jax_versions import call_on_each_device, varying_zeros
from maxlm.kernels import block_sizes
from maxlm.kernels.block_sizes import BlockSizes
from maxlm.kernels.mask import Mask, fill_blocks, least_words, meetings, visit_table, words
from maxlm.kernels.shape import DISTANCE_SETTINGS, PLAIN, AttentionShape, Scoring
from maxlm.kernels.tpu_kernels import TURN, Tiling, Who, backward_kernel, forward_kernel
from maxlm.products import einsum_fp32

MAX_HEAD_SIZE = 256


def unsupported(shape: AttentionShape) -> str | None:
    """Return why the kernels cannot do this, naming the feature, or None if they can."""
    if shape.dtype not in ("bfloat16", "float32"):
        return f"multiplies bfloat16 and float32, not {shape.dtype}"
    if max(shape.key_size, shape.value_size) > MAX_HEAD_SIZE:
        return f"has head sizes to {MAX_HEAD_SIZE}, not {max(shape.key_size, shape.value_size)}"
    if shape.by_distance == "table":
        return f"adds no table to scores by distance, {DISTANCE_SETTINGS['table']}"
    return None


def forward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring = PLAIN,
    device_kind: str = "TPU v5",
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Compute softmax(scores) v as `chunked_attention.forward` does.

    Args:
      q_BTNH: queries, bf16 or fp32; N is a multiple of K.
      k_BSKH: keys.
      v_BSKH: values.
      mask: who sees whom.
      scoring: how scores are made, without a table.
      device_kind: `jax.Device.device_kind`, for which block sizes are chosen.
      interpret: True or `pltpu.InterpretParams(...)` runs the kernel's meaning, on any device,
        slowly.

    Returns:
      out (B, T, N, H_v) in the queries' dtype and lse (B, N, T) fp32.
    """
    shape = _shape(q_BTNH, v_BSKH, scoring, device_kind)
    layout = _layout(shape, block_sizes.tpu_forward)
    tiling = _tiling(scoring, shape, layout, mask, interpret)
    rows = _rows_of(mask, layout)
    meet, full = (
        x.reshape(*x.shape[:2], layout.num_stretches, -1)
        for x in meetings(rows, layout.sizes.q, layout.sizes.kv)
    )
    who = _who(rows, visit_table(meet, full, unit=TURN), tiling, _slopes(scoring, layout))
    arrays = _rows(q_BTNH, layout), _keys(k_BSKH, layout), _keys(v_BSKH, layout)
    out, lse = _run(forward_kernel, tiling, *arrays, who, _stretches_seen(meet))
    return _tokens(out, layout), _tokens(lse.swapaxes(2, 3), layout)[..., 0].swapaxes(1, 2)


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
    device_kind: str = "TPU v5",
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the gradients of q, k and v as `chunked_attention.backward` does.

    Sums are taken in an order that depends on shapes and mask alone: the same inputs give the same
    bits. Where keys do not fit into VMEM, stretch after stretch of them is worked on; each yields
    its part of dq.
    """
    shape = _shape(q_BTNH, v_BSKH, scoring, device_kind)
    layout = _layout(shape, block_sizes.tpu_backward)
    tiling = _tiling(scoring, shape, layout, mask, interpret)._replace(num_stretches=1)
    delta_BTN = einsum_fp32("BTNH,BTNH->BTN", d_out_BTNH, out_BTNH)
    q, d_out = _rows(q_BTNH, layout), _rows(d_out_BTNH.astype(q_BTNH.dtype), layout)
    lse, delta = (
        _rows(x[..., None], layout).swapaxes(2, 3) for x in (lse_BNT.swapaxes(1, 2), delta_BTN)
    )
    k, v, rows = _keys(k_BSKH, layout), _keys(v_BSKH, layout), _rows_of(mask, layout)
    slopes = _slopes(scoring, layout)

    def part(k: jax.Array, v: jax.Array, keys: jax.Array, *, dtype: Any) -> Any:
        here = Mask.of(rows.queries, keys)
        meet, full = meetings(here, layout.sizes.q, layout.sizes.kv)
        who = _who(here, visit_table(meet, full)[:, :, None], tiling, slopes)
        return _run(
            functools.partial(backward_kernel, d_q_dtype=dtype),
            tiling,
            q,
            k,
            v,
            d_out,
            (lse, delta),
            who,
        )

    if layout.num_stretches == 1:
        d_q, d_k, d_v = part(k, v, rows.keys, dtype=q.dtype)
    else:

        def step(
            d_q: jax.Array, given: tuple[jax.Array, ...]
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            # Else XLA may fuse the kernel with the stacking of its results, and forgets how much
            # memory it may take.
            added, d_k, d_v = lax.optimization_barrier(part(*given, dtype=jnp.float32))
            return d_q + added, (d_k, d_v)

        parts = tuple(_split(x, layout.num_stretches, axis=2) for x in (k, v, rows.keys))
        start = varying_zeros(q.shape, q, k, v, d_out, lse, *jax.tree.leaves(mask))
        d_q, sums = lax.scan(step, start, parts)
        d_k, d_v = (
            jnp.moveaxis(x, 0, 2).reshape(y.shape) for x, y in zip(sums, (k, v), strict=True)
        )
    length = shape.key_length
    d_k, d_v = d_k.swapaxes(1, 2)[:, :length], d_v.swapaxes(1, 2)[:, :length]
    return _tokens(d_q.astype(q.dtype), layout), d_k, d_v


class _Layout(NamedTuple):
    """How arrays lie before the kernel; with `rows_per_token` > 1 the heads of a group are rows of
    one block.
    """

    sizes: BlockSizes
    query_length: int
    rows_per_token: int
    num_rows: int
    num_keys: int

    @property
    def num_stretches(self) -> int:
        return self.num_keys // self.sizes.stretch


def _shape(
    q_BTNH: jax.Array, v_BSKH: jax.Array, scoring: Scoring, device_kind: str
) -> AttentionShape:
    _, length, num_heads, key_size = q_BTNH.shape
    _, key_length, num_kv_heads, value_size = v_BSKH.shape
    sizes = num_heads, num_kv_heads, key_size, value_size, length, key_length
    shape = AttentionShape(device_kind, str(q_BTNH.dtype), *sizes, softcap=scoring.softcap)
    shape = shape._replace(by_distance=scoring.by_distance)
    reason = unsupported(shape)
    if reason is not None:
        raise ValueError(reason)
    return shape


def _layout(shape: AttentionShape, choose: Any) -> _Layout:
    """Lay out; few queries (decoding) share a block with those of the other heads of their group."""
    group = shape.num_heads // shape.num_kv_heads
    rows_per_token = group if shape.query_length < block_sizes.LANES else 1
    rows = shape.query_length * rows_per_token
    sizes = choose(shape._replace(query_length=rows))
    return _Layout(
        sizes,
        shape.query_length,
        rows_per_token,
        -(-rows // sizes.q) * sizes.q,
        -(-shape.key_length // sizes.stretch) * sizes.stretch,
    )


def _tiling(
    scoring: Scoring, shape: AttentionShape, layout: _Layout, mask: Mask, interpret: Any
) -> Tiling:
    return Tiling(
        q_block=layout.sizes.q,
        kv_block=layout.sizes.kv,
        num_q_blocks=layout.num_rows // layout.sizes.q,
        num_kv_blocks=layout.sizes.stretch // layout.sizes.kv,
        num_stretches=layout.num_stretches,
        reach=mask.reach,
        scale=scoring.scale_of(shape.key_size),
        softcap=shape.softcap,
        vmem_bytes=block_sizes.vmem_limit(shape.device_kind),
        interpret=interpret,
    )


def _run(kernel: Callable[..., Any], tiling: Tiling, *arrays: Any) -> Any:
    """Run kernel(*arrays, tiling); interpreted, apart from a `shard_map` around: it takes no arrays
    that vary.
    """
    if tiling.interpret is not True:
        return kernel(*arrays, tiling)
    return call_on_each_device(
        lambda *arrays: kernel(*arrays, tiling), *arrays, platform=jax.default_backend()
    )


def _rows(x_BTNH: jax.Array, layout: _Layout) -> jax.Array:
    """(B, T, N, H) -> (B, N / rows per token, rows, H), filled with zeros."""
    batch, length, num_heads, width = x_BTNH.shape
    grouped = x_BTNH.reshape(batch, length, -1, layout.rows_per_token, width).swapaxes(1, 2)
    return _fill(
        grouped.reshape(batch, num_heads // layout.rows_per_token, -1, width), 2, layout.num_rows
    )


def _tokens(x: jax.Array, layout: _Layout) -> jax.Array:
    """(B, N / rows per token, rows, H) -> (B, T, N, H)."""
    batch, _, _, width = x.shape
    used = x[:, :, : layout.query_length * layout.rows_per_token]
    grouped = used.reshape(batch, -1, layout.query_length, layout.rows_per_token, width).swapaxes(
        1, 2
    )
    return grouped.reshape(batch, layout.query_length, -1, width)


def _slopes(scoring: Scoring, layout: _Layout) -> jax.Array | None:
    """Return each row's slope, (N / rows per token, 1, rows), or None."""
    if scoring.slopes_N is None:
        return None
    of_token = scoring.slopes_N.astype(jnp.float32).reshape(-1, 1, layout.rows_per_token)
    tokens = -(-layout.num_rows // layout.rows_per_token)
    return jnp.tile(of_token, (1, 1, tokens))[:, :, : layout.num_rows]


def _keys(x_BSKH: jax.Array, layout: _Layout) -> jax.Array:
    """(B, S, K, H) -> (B, K, keys, H), filled with zeros."""
    return _fill(x_BSKH.swapaxes(1, 2), 2, layout.num_keys)


def _rows_of(mask: Mask, layout: _Layout) -> Mask:
    """Return the mask of rows and keys with the filling; what fills the rows is like the last one,
    to be no border.
    """
    rows = jnp.repeat(mask.queries, layout.rows_per_token, axis=2)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, layout.num_rows - rows.shape[2])), mode="edge")
    filled = Mask.of(rows, _fill(mask.keys, 2, layout.num_keys), mask.reach)
    return fill_blocks(filled, layout.sizes.q, layout.sizes.kv)


def _who(rows: Mask, table: jax.Array, tiling: Tiling, slopes: jax.Array | None) -> Who:
    # v5e and v5p compare numbers without a sign by way of such with one. Moved by half their range,
    # they have one.
    half = 2**31
    if rows.q_least_BT is None:
        (queries, keys), moved = (
            words(rows, tiling.q_block, tiling.kv_block),
            ([0, 0], [0, half, half]),
        )
    else:
        (queries, keys), moved = (
            least_words(rows, tiling.q_block, tiling.kv_block),
            ([0, half], [half]),
        )
    queries, keys = (
        lax.bitcast_convert_type(x + jnp.asarray(by, jnp.uint32)[:, None], jnp.int32)
        for x, by in zip((queries, keys), moved, strict=True)
    )
    keys = keys.reshape(*keys.shape[:2], -1, tiling.kv_block).swapaxes(1, 2)
    return Who(queries, keys, table[:, :, :, None], slopes)


def _stretches_seen(meet: jax.Array) -> jax.Array:
    """Return the first and the last stretch that each block of queries visits, (B * rows * 2), from
    (B, rows, ...).
    """
    visited, index = meet.any(axis=3), jnp.arange(meet.shape[2], dtype=jnp.int32)
    last = jnp.where(visited, index, 0).max(axis=2)
    first = jnp.where(visited, index, last[:, :, None]).min(axis=2)
    return jnp.stack([first, last], axis=2).reshape(-1)


def _fill(x: jax.Array, axis: int, length: int) -> jax.Array:
    missing = length - x.shape[axis]
    return jnp.pad(x, [(0, missing if n == axis else 0) for n in range(x.ndim)]) if missing else x


def _split(x: jax.Array, parts: int, axis: int) -> jax.Array:
    """Cut an axis into parts, which become the leading axis."""
    return jnp.moveaxis(x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :]), axis, 0)
