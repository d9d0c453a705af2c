"""Attention in plain JAX with O(T) memory: the reference for every kernel, and what the CPU runs.

Both passes walk over tiles of queries and keys and keep one tile of scores at a time (online softmax,
arXiv:2112.05682; backward from the saved log-sum-exp, arXiv:2205.14135). Tiles that no query can see, because they
lie in the future or before the window, are not computed. Scores and sums are fp32 whatever the inputs are.

Arrays are cut into tiles once, heads before tokens: every product below is then a plain batch of matrix products and
no scores are ever transposed, which costs a CPU more than computing them. Rows are tiles of queries, columns of keys.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.jax_versions import varying_zeros
from maxlm.kernels.mask import NOTHING_SEEN, Mask, visible

MIN_BLOCK, MAX_BLOCK = 128, 512
"""Tokens of a tile: small ones stay in a CPU's cache and skip more of the future, large ones keep a GPU busy."""


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
    q, k, v = _query_tiles(q_BTNH, k_BSKH.shape[2]), _key_tiles(k_BSKH), _key_tiles(v_BSKH)
    segments = _segment_tiles(mask)

    def row(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        q_BKGTH = _at(q, index)

        def column(column: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            out, peak, total = carry
            scores = _scores(q_BKGTH, _at(k, column), mask, segments, (index, column), softcap)
            new_peak = jnp.maximum(peak, scores.max(axis=-1, keepdims=True))
            p = jnp.where(scores > NOTHING_SEEN, jnp.exp(scores - new_peak), 0.0)
            shrink = jnp.exp(peak - new_peak)
            part = _dot("BKGTS,BKSH->BKGTH", p.astype(v.dtype), _at(v, column))
            return out * shrink + part, new_peak, total * shrink + p.sum(axis=-1, keepdims=True)

        sums = varying_zeros((*q_BKGTH.shape[:-1], 1), q, k)
        start = (varying_zeros((*q_BKGTH.shape[:-1], v.shape[-1]), q, k), sums + NOTHING_SEEN, sums)
        first, last = _columns_seen(index, mask, q.shape[-2], k.shape[-2], k.shape[0])
        out, peak, total = _loop(first, last, column, start, k.shape[0])
        seen = total > 0
        lse = jnp.where(seen, peak + jnp.log(jnp.where(seen, total, 1.0)), NOTHING_SEEN)
        return (out / jnp.where(seen, total, 1.0)).astype(q.dtype), lse

    out, lse = lax.map(row, jnp.arange(q.shape[0], dtype=jnp.int32))
    return _from_query_tiles(out, length), _from_query_tiles(lse, length)[..., 0].swapaxes(1, 2)


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
    num_kv_heads = k_BSKH.shape[2]
    delta_BTN = jnp.einsum("BTNH,BTNH->BTN", d_out_BTNH, out_BTNH, preferred_element_type=jnp.float32)
    q, d_out = _query_tiles(q_BTNH, num_kv_heads), _query_tiles(d_out_BTNH, num_kv_heads)
    lse = _query_tiles(lse_BNT.swapaxes(1, 2)[..., None], num_kv_heads)
    delta = _query_tiles(delta_BTN[..., None], num_kv_heads)
    k, v, segments = _key_tiles(k_BSKH), _key_tiles(v_BSKH), _segment_tiles(mask)
    scale = 1 / math.sqrt(q.shape[-1])

    def column(d_q: jax.Array, index: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        k_BKSH, v_BKSH = _at(k, index), _at(v, index)

        def row(row: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            d_q, d_k, d_v = carry
            q_BKGTH, d_out_BKGTH = _at(q, row), _at(d_out, row)
            scores = _scores(q_BKGTH, k_BKSH, mask, segments, (row, index), softcap)
            p = jnp.where(scores > NOTHING_SEEN, jnp.exp(scores - _at(lse, row)), 0.0)
            d_v += _dot("BKGTH,BKGTS->BKHS", d_out_BKGTH, p.astype(v.dtype))
            d_p = _dot("BKGTH,BKSH->BKGTS", d_out_BKGTH, v_BKSH)
            d_s = p * (d_p - _at(delta, row)) * scale
            if softcap is not None:
                d_s *= 1 - jnp.square(jnp.maximum(scores / softcap, -1))  # no more than 1, in hidden places too
            d_s = d_s.astype(q.dtype)
            d_k += _dot("BKGTH,BKGTS->BKHS", q_BKGTH, d_s)
            d_q_row = _at(d_q, row) + _dot("BKGTS,BKSH->BKGTH", d_s, k_BKSH)
            return lax.dynamic_update_index_in_dim(d_q, d_q_row, row, axis=0), d_k, d_v

        zeros = varying_zeros(k_BKSH.mT.shape, q, k), varying_zeros(v_BKSH.mT.shape, q, v)
        first, last = _rows_that_see(index, mask, q.shape[-2], k.shape[-2], q.shape[0])
        d_q, d_k, d_v = _loop(first, last, row, (d_q, *zeros), q.shape[0])
        return d_q, (d_k.mT, d_v.mT)

    d_q, (d_k, d_v) = lax.scan(column, varying_zeros(q.shape, q, k), jnp.arange(k.shape[0], dtype=jnp.int32))
    return (
        _from_query_tiles(d_q, q_BTNH.shape[1]).astype(q_BTNH.dtype),
        _from_key_tiles(d_k, k_BSKH.shape[1]).astype(k_BSKH.dtype),
        _from_key_tiles(d_v, k_BSKH.shape[1]).astype(v_BSKH.dtype),
    )


def _scores(
    q_BKGTH: jax.Array,
    k_BKSH: jax.Array,
    mask: Mask,
    segments: tuple[jax.Array, jax.Array],
    tile: tuple[jax.Array, jax.Array],
    softcap: float | None,
) -> jax.Array:
    """Return the fp32 scores (B, K, G, T, S) of the tile (row, column), `NOTHING_SEEN` where the mask hides them."""
    row, column = tile
    q_index = mask.q_start + row * q_BKGTH.shape[-2] + jnp.arange(q_BKGTH.shape[-2], dtype=jnp.int32)
    kv_index = mask.kv_start + column * k_BKSH.shape[-2] + jnp.arange(k_BKSH.shape[-2], dtype=jnp.int32)
    q_segments_BT, kv_segments_BS = _at(segments[0], row), _at(segments[1], column)
    seen = visible(q_index, kv_index, causal=mask.causal, window=mask.window)
    seen = seen & (q_segments_BT[:, :, None] == kv_segments_BS[:, None, :]) & (kv_segments_BS > 0)[:, None, :]
    scores = _dot("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH) / math.sqrt(q_BKGTH.shape[-1])
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    return jnp.where(seen[:, None, None], scores, NOTHING_SEEN)


def _columns_seen(
    row: jax.Array, mask: Mask, q_block: int, kv_block: int, num_columns: int
) -> tuple[jax.Array | int, jax.Array | int]:
    """Return the range of key tiles that some query of this row can see."""
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
    """Return the range of query tiles in which some query can see this column."""
    first_index = mask.kv_start - mask.q_start + column * kv_block
    last_index = first_index + kv_block - 1
    first: jax.Array | int = 0
    last: jax.Array | int = num_rows
    if mask.causal:
        first = jnp.clip(first_index // q_block, 0, num_rows)
    if mask.window is not None:
        last = jnp.clip((last_index + mask.window - 1) // q_block + 1, 0, num_rows)
    return first, last


def _loop(first, last, body, carry, num_tiles):  # type: ignore[no-untyped-def]
    """Run body over tiles [first, last); a single tile is computed without a loop."""
    if num_tiles == 1:
        return body(jnp.int32(0), carry)
    return lax.fori_loop(jnp.int32(first), jnp.int32(last), body, carry)


def _query_tiles(x_BTNH: jax.Array, num_kv_heads: int) -> jax.Array:
    """Cut queries into rows: (B, T, N, H) -> (rows, B, K, G, T / rows, H)."""
    num_heads, width = x_BTNH.shape[2:]
    tiles = _tiles(x_BTNH)
    grouped = tiles.reshape(*tiles.shape[:3], num_kv_heads, num_heads // num_kv_heads, width)
    return grouped.transpose(1, 0, 3, 4, 2, 5)


def _key_tiles(x_BSKH: jax.Array) -> jax.Array:
    """Cut keys or values into columns: (B, S, K, H) -> (columns, B, K, S / columns, H)."""
    return _tiles(x_BSKH).transpose(1, 0, 3, 2, 4)


def _segment_tiles(mask: Mask) -> tuple[jax.Array, jax.Array]:
    """Cut segments into rows and columns; the filling has segment 0, which nobody sees."""
    return _tiles(mask.q_segments_BT).swapaxes(0, 1), _tiles(mask.kv_segments_BS).swapaxes(0, 1)


def _from_query_tiles(x: jax.Array, length: int) -> jax.Array:
    """(rows, B, K, G, T / rows, H) -> (B, T, N, H)."""
    _, batch, num_kv_heads, num_groups, _, width = x.shape
    return x.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, num_kv_heads * num_groups, width)[:, :length]


def _from_key_tiles(x: jax.Array, length: int) -> jax.Array:
    """(columns, B, K, S / columns, H) -> (B, S, K, H)."""
    _, batch, num_kv_heads, _, width = x.shape
    return x.transpose(1, 0, 3, 2, 4).reshape(batch, -1, num_kv_heads, width)[:, :length]


def _tiles(x: jax.Array) -> jax.Array:
    """Cut the second dimension into tiles, the last filled with zeros: (B, T, ...) -> (B, tiles, T / tiles, ...)."""
    block = block_size(x.shape[1])
    missing = -x.shape[1] % block
    filled = jnp.pad(x, [(0, missing if axis == 1 else 0) for axis in range(x.ndim)]) if missing else x
    return filled.reshape(x.shape[0], -1, block, *x.shape[2:])


def block_size(length: int) -> int:
    """Return how many tokens a tile of a sequence has: about 1/16 of it, or all where it is short."""
    return min(length, max(MIN_BLOCK, min(-(-length // (16 * MIN_BLOCK)) * MIN_BLOCK, MAX_BLOCK)))


def _at(tiles: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(tiles, index, keepdims=False)


def _dot(letters: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(letters, x, y, preferred_element_type=jnp.float32)
