"""Attention in plain JAX with O(T) memory: the reference for every kernel, and what the CPU runs.

Both passes walk over blocks of queries and keys and keep one block of scores at a time (online softmax,
arXiv:2112.05682; backward from the saved log-sum-exp, arXiv:2205.14135). Blocks that no query can see, because they
lie in the future or before the window, are not computed. Scores and sums are fp32 whatever the inputs are.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.jax_versions import varying_zeros
from maxlm.kernels.mask import NOTHING_SEEN, Mask, visible

BLOCK = 512


def forward(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, *, softcap: float | None = None
) -> tuple[jax.Array, jax.Array]:
    """Compute softmax(q k^T / sqrt(H)) v.

    Args:
      q_BTNH: queries; N is a multiple of K.
      k_BSKH: keys.
      v_BSKH: values; their head size may differ from the keys'.
      mask: who sees whom.
      softcap: c turns a score s into c tanh(s / c) (arXiv:2408.00118); None leaves it.

    Returns:
      out (B, T, N, H_v) in the queries' dtype and lse (B, N, T) fp32, the log-sum-exp of each row's scores; a row that
      sees no key gives zeros and lse -1e30.
    """
    length = q_BTNH.shape[1]
    q, k, v, mask = _padded(q_BTNH, k_BSKH, v_BSKH, mask)
    num_blocks = q.shape[1] // _block(length)

    def row(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _forward_row(_rows(q, index, _block(length)), k, v, mask, index, softcap)

    if num_blocks == 1:
        out, lse = row(jnp.int32(0))
    else:
        out, lse = lax.map(row, jnp.arange(num_blocks, dtype=jnp.int32))
        out = jnp.moveaxis(out, 0, 1).reshape(q.shape[0], -1, q.shape[2], v.shape[3])
        lse = jnp.moveaxis(lse, 0, 2).reshape(q.shape[0], q.shape[2], -1)
    return out[:, :length], lse[:, :, :length]


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
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the gradients of q, k and v from the forward pass's `out` and `lse`.

    With p = exp(s - lse): dv = p^T do, ds = p * (do v^T - rowsum(do * out)) / sqrt(H), dq = ds k, dk = ds^T q.
    Where s is capped, ds is multiplied with the slope of the cap, 1 - tanh^2 = 1 - (s / c)^2.
    `lse` may come from a larger softmax than this call's keys (ring attention): p is then this part of it.
    """
    q_length, kv_length = q_BTNH.shape[1], k_BSKH.shape[1]
    delta_BNT = jnp.einsum("BTNH,BTNH->BNT", d_out_BTNH, out_BTNH, preferred_element_type=jnp.float32)
    q_block, kv_block = _block(q_length), _block(kv_length)
    q, k, v, padded_mask = _padded(q_BTNH, k_BSKH, v_BSKH, mask)
    d_out = _pad(d_out_BTNH, 1, q_block)
    lse, delta = _pad(lse_BNT, 2, q_block), _pad(delta_BNT, 2, q_block)

    def column(d_q: jax.Array, index: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        k_block, v_block = _rows(k, index, kv_block), _rows(v, index, kv_block)

        def body(row: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            d_q, d_k, d_v = carry
            q_rows, d_rows = _rows(q, row, q_block), _rows(d_out, row, q_block)
            scores = _scores(q_rows, k_block, padded_mask, row * q_block, index * kv_block, softcap)
            lse_rows, delta_rows = _rows(lse, row, q_block, axis=2), _rows(delta, row, q_block, axis=2)
            p = jnp.where(scores > NOTHING_SEEN, jnp.exp(scores - _grouped(lse_rows, k.shape[2])), 0.0)
            d_v += jnp.einsum(
                "BKGTS,BTKGH->BSKH", p.astype(v.dtype), _heads(d_rows, k), preferred_element_type=jnp.float32
            )
            d_p = jnp.einsum("BTKGH,BSKH->BKGTS", _heads(d_rows, k), v_block, preferred_element_type=jnp.float32)
            d_s = p * (d_p - _grouped(delta_rows, k.shape[2])) / math.sqrt(q.shape[3])
            if softcap is not None:
                d_s *= 1 - jnp.square(jnp.maximum(scores / softcap, -1))  # no more than 1, in hidden places too
            d_s = d_s.astype(q.dtype)
            d_k += jnp.einsum("BKGTS,BTKGH->BSKH", d_s, _heads(q_rows, k), preferred_element_type=jnp.float32)
            d_rows_q = jnp.einsum("BKGTS,BSKH->BTKGH", d_s, k_block, preferred_element_type=jnp.float32)
            d_rows_q = d_rows_q.reshape(q_rows.shape) + _rows(d_q, row, q_block)
            return lax.dynamic_update_slice_in_dim(d_q, d_rows_q, row * q_block, axis=1), d_k, d_v

        zeros = (varying_zeros(k_block.shape, q, k), varying_zeros(v_block.shape, q, v))
        first, last = _rows_that_see(index, padded_mask, q_block, kv_block, q.shape[1] // q_block)
        d_q, d_k, d_v = _loop(first, last, body, (d_q, *zeros), q.shape[1] // q_block)
        return d_q, (d_k, d_v)

    d_q = varying_zeros(q.shape, q, k)
    num_columns = k.shape[1] // kv_block
    if num_columns == 1:
        d_q, (d_k, d_v) = column(d_q, jnp.int32(0))
    else:
        d_q, (d_k, d_v) = lax.scan(column, d_q, jnp.arange(num_columns, dtype=jnp.int32))
        d_k = jnp.moveaxis(d_k, 0, 1).reshape(k.shape)
        d_v = jnp.moveaxis(d_v, 0, 1).reshape(v.shape)
    return (
        d_q[:, :q_length].astype(q_BTNH.dtype),
        d_k[:, :kv_length].astype(k_BSKH.dtype),
        d_v[:, :kv_length].astype(v_BSKH.dtype),
    )


def _forward_row(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, row: jax.Array, softcap: float | None
) -> tuple[jax.Array, jax.Array]:
    """Attend from one block of queries to all keys it can see."""
    batch, q_block, num_heads, _ = q.shape
    kv_block = _block(k.shape[1])
    num_groups = num_heads // k.shape[2]

    def body(column: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out, peak, total = carry
        k_block, v_block = _rows(k, column, kv_block), _rows(v, column, kv_block)
        scores = _scores(q, k_block, mask, row * q_block, column * kv_block, softcap)
        new_peak = jnp.maximum(peak, scores.max(axis=-1))
        p = jnp.where(scores > NOTHING_SEEN, jnp.exp(scores - new_peak[..., None]), 0.0)
        shrink = jnp.exp(peak - new_peak)
        part = jnp.einsum("BKGTS,BSKH->BKGTH", p.astype(v.dtype), v_block, preferred_element_type=jnp.float32)
        return out * shrink[..., None] + part, new_peak, total * shrink + p.sum(axis=-1)

    stats = (batch, k.shape[2], num_groups, q_block)
    start = (
        varying_zeros((*stats, v.shape[3]), q, k),
        varying_zeros(stats, q, k) + NOTHING_SEEN,
        varying_zeros(stats, q, k),
    )
    first, last = _columns_seen(row, mask, q_block, kv_block, k.shape[1] // kv_block)
    out, peak, total = _loop(first, last, body, start, k.shape[1] // kv_block)
    seen = total > 0
    out = out / jnp.where(seen, total, 1.0)[..., None]
    lse = jnp.where(seen, peak + jnp.log(jnp.where(seen, total, 1.0)), NOTHING_SEEN)
    out = jnp.moveaxis(out, 3, 1).reshape(batch, q_block, num_heads, v.shape[3])
    return out.astype(q.dtype), lse.reshape(batch, num_heads, q_block)


def _scores(
    q: jax.Array, k: jax.Array, mask: Mask, q_offset: jax.Array, kv_offset: jax.Array, softcap: float | None
) -> jax.Array:
    """Return fp32 scores (B, K, G, T, S) of one block pair, `NOTHING_SEEN` where the mask hides them."""
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", _heads(q, k), k, preferred_element_type=jnp.float32)
    scores /= math.sqrt(q.shape[3])
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    q_segments = lax.dynamic_slice_in_dim(mask.q_segments_BT, q_offset, q.shape[1], axis=1)
    kv_segments = lax.dynamic_slice_in_dim(mask.kv_segments_BS, kv_offset, k.shape[1], axis=1)
    q_index = mask.q_start + q_offset + jnp.arange(q.shape[1], dtype=jnp.int32)
    kv_index = mask.kv_start + kv_offset + jnp.arange(k.shape[1], dtype=jnp.int32)
    seen = visible(q_index, kv_index, causal=mask.causal, window=mask.window)
    seen = seen & (q_segments[:, :, None] == kv_segments[:, None, :]) & (kv_segments > 0)[:, None, :]
    return jnp.where(seen[:, None, None], scores, NOTHING_SEEN)


def _columns_seen(
    row: jax.Array, mask: Mask, q_block: int, kv_block: int, num_columns: int
) -> tuple[jax.Array | int, jax.Array | int]:
    """Return the range of key blocks that some query of this block can see."""
    first_index = mask.q_start - mask.kv_start + row * q_block
    last_index = first_index + q_block - 1
    first: jax.Array | int = 0
    last: jax.Array | int = num_columns
    if mask.causal:
        last = jnp.clip(last_index // kv_block + 1, 0, num_columns)
    if mask.window is not None:
        first = jnp.clip((first_index - mask.window + 1) // kv_block, 0, num_columns)
    return first, last


def _rows_that_see(
    column: jax.Array, mask: Mask, q_block: int, kv_block: int, num_rows: int
) -> tuple[jax.Array | int, jax.Array | int]:
    """Return the range of query blocks in which some query can see this block of keys."""
    first_index = mask.kv_start - mask.q_start + column * kv_block
    last_index = first_index + kv_block - 1
    first: jax.Array | int = 0
    last: jax.Array | int = num_rows
    if mask.causal:
        first = jnp.clip(first_index // q_block, 0, num_rows)
    if mask.window is not None:
        last = jnp.clip((last_index + mask.window - 1) // q_block + 1, 0, num_rows)
    return first, last


def _loop(first, last, body, carry, num_blocks):  # type: ignore[no-untyped-def]
    """Run body over blocks [first, last); a single block is computed without a loop."""
    if num_blocks == 1:
        return body(jnp.int32(0), carry)
    return lax.fori_loop(jnp.int32(first), jnp.int32(last), body, carry)


def _block(length: int) -> int:
    """Return the block size for a sequence: all of it when it is short."""
    return min(length, BLOCK)


def _padded(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> tuple[jax.Array, jax.Array, jax.Array, Mask]:
    """Fill sequences up to whole blocks; the filling has segment 0, which nobody sees."""
    q_block, kv_block = _block(q.shape[1]), _block(k.shape[1])
    padded_mask = Mask(
        q_segments_BT=_pad(mask.q_segments_BT, 1, q_block),
        kv_segments_BS=_pad(mask.kv_segments_BS, 1, kv_block),
        q_start=mask.q_start,
        kv_start=mask.kv_start,
        causal=mask.causal,
        window=mask.window,
    )
    return _pad(q, 1, q_block), _pad(k, 1, kv_block), _pad(v, 1, kv_block), padded_mask


def _pad(x: jax.Array, axis: int, block: int) -> jax.Array:
    missing = -x.shape[axis] % block
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)]) if missing else x


def _rows(x: jax.Array, index: jax.Array, block: int, axis: int = 1) -> jax.Array:
    return x if x.shape[axis] == block else lax.dynamic_slice_in_dim(x, index * block, block, axis=axis)


def _heads(x_BTNH: jax.Array, k: jax.Array) -> jax.Array:
    """Split N query heads into K groups of G: (B, T, N, H) -> (B, T, K, G, H)."""
    batch, length, _, head_dim = x_BTNH.shape
    return x_BTNH.reshape(batch, length, k.shape[2], -1, head_dim)


def _grouped(x_BNT: jax.Array, num_kv_heads: int) -> jax.Array:
    """(B, N, T) -> (B, K, G, T, 1)."""
    batch, _, length = x_BNT.shape
    return x_BNT.reshape(batch, num_kv_heads, -1, length, 1)
