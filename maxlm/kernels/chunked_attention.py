"""Attention in plain JAX with O(T) memory: the reference for every kernel, and what the CPU runs.

Both passes walk over tiles of queries and keys and keep one tile of scores at a time (online
softmax, arXiv:2112.05682; backward from the saved log-sum-exp, arXiv:2205.14135). Tiles that no
query can see are not computed. Scores and sums are fp32 whatever the inputs are.

Arrays are cut into tiles once, heads before tokens: every product below is then a plain batch of
matrix products and no scores are ever transposed, which costs a CPU more than computing them. Rows
are tiles of queries, columns of keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.jax_versions import varying_zeros
from maxlm.kernels.mask import (
    NOTHING_SEEN,
    TABLE_HEAD,
    Mask,
    Visits,
    fill_blocks,
    least_words,
    meetings,
    sees,
    visit_table,
)
from maxlm.kernels.shape import PLAIN, Scoring
from maxlm.products import einsum_fp32

MIN_BLOCK, MAX_BLOCK = 128, 512
"""Tokens of a tile: small ones stay in a CPU's cache and skip more of the future, large ones keep its
cores and a GPU busy.
"""
MAX_WHOLE = 4096
"""Keys that a single query attends to at once; of more, those that it does not see are skipped."""


def forward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring = PLAIN,
) -> tuple[jax.Array, jax.Array]:
    """Compute softmax(scores) v.

    Args:
      q_BTNH: queries; N is a multiple of K.
      k_BSKH: keys.
      v_BSKH: values; their head size may differ from the keys'.
      mask: who sees whom.
      scoring: how scores are made of q k^T and the distance.

    Returns:
      out (B, T, N, H_v) in the queries' dtype and lse (B, N, T) fp32, the log-sum-exp of each row's
      scores; a row that sees no key gives zeros and lse -1e30.
    """
    length = q_BTNH.shape[1]
    # One token's scores are few: all keys in one tile are read where they lie, seen or not.
    whole = k_BSKH.shape[1] if length == 1 and k_BSKH.shape[1] <= MAX_WHOLE else None
    q = _query_tiles(q_BTNH, k_BSKH.shape[2])
    k, v = _key_tiles(k_BSKH, whole), _key_tiles(v_BSKH, whole)
    who, like = _Who.of(mask, q, k), (q, k, *jax.tree.leaves((mask, scoring)))

    def row(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        q_BKGTH = _at(q, index)

        def column(
            column: jax.Array, seen_BTS: jax.Array, carry: tuple[jax.Array, ...]
        ) -> tuple[jax.Array, ...]:
            out, peak, total = carry
            where = seen_BTS, who.distance(index, column)
            scores = _scores(q_BKGTH, _at(k, column), scoring, *where)
            new_peak = jnp.maximum(peak, scores.max(axis=-1, keepdims=True))
            p = jnp.where(scores > NOTHING_SEEN, jnp.exp(scores - new_peak), 0.0)
            shrink = jnp.exp(peak - new_peak)
            part = einsum_fp32("BKGTS,BKSH->BKGTH", p.astype(v.dtype), _at(v, column))
            return out * shrink + part, new_peak, total * shrink + p.sum(axis=-1, keepdims=True)

        sums = varying_zeros((*q_BKGTH.shape[:-1], 1), *like)
        start = (
            varying_zeros((*q_BKGTH.shape[:-1], v.shape[-1]), *like),
            sums + NOTHING_SEEN,
            sums,
        )
        out, peak, total = _loop(
            who.of_queries, index, lambda column: who.sees(index, column), column, start
        )
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
    scoring: Scoring = PLAIN,
) -> tuple[jax.Array, ...]:
    """Compute the gradients of q, k and v, and of a table, from the forward pass's `out` and `lse`.

    With p = exp(s - lse): dv = p^T do, ds = p * (do v^T - rowsum(do * out)), dq = scale ds k, dk =
    scale ds^T q, and each place of a table gets the sum of ds in its bucket. Where s is capped, ds
    is multiplied with the slope of the cap, 1 - tanh^2 = 1 - (s / c)^2. `lse` may come from a
    larger softmax than this call's keys (ring attention): p is then this part of it.

    Returns:
      dq, dk, dv like q, k, v; with a table, d_table (N, X) fp32 too.
    """
    num_kv_heads = k_BSKH.shape[2]
    delta_BTN = einsum_fp32("BTNH,BTNH->BTN", d_out_BTNH, out_BTNH)
    q, d_out = _query_tiles(q_BTNH, num_kv_heads), _query_tiles(d_out_BTNH, num_kv_heads)
    lse = _query_tiles(lse_BNT.swapaxes(1, 2)[..., None], num_kv_heads)
    delta = _query_tiles(delta_BTN[..., None], num_kv_heads)
    k, v = _key_tiles(k_BSKH), _key_tiles(v_BSKH)
    who, like = _Who.of(mask, q, k), (q, k, v, d_out, *jax.tree.leaves((mask, scoring)))

    def column(
        sums: tuple[jax.Array, Any], index: jax.Array
    ) -> tuple[tuple[jax.Array, Any], tuple[jax.Array, jax.Array]]:
        k_BKSH, v_BKSH = _at(k, index), _at(v, index)

        def row(
            row: jax.Array, seen_BTS: jax.Array, carry: tuple[jax.Array, ...]
        ) -> tuple[jax.Array, ...]:
            d_q, d_table, d_k, d_v = carry
            q_BKGTH, d_out_BKGTH = _at(q, row), _at(d_out, row)
            distance_BTS = who.distance(row, index)
            scores = _scores(q_BKGTH, k_BKSH, scoring, seen_BTS, distance_BTS)
            p = jnp.where(scores > NOTHING_SEEN, jnp.exp(scores - _at(lse, row)), 0.0)
            d_v += einsum_fp32("BKGTH,BKGTS->BKHS", d_out_BKGTH, p.astype(v.dtype))
            d_p = einsum_fp32("BKGTH,BKSH->BKGTS", d_out_BKGTH, v_BKSH)
            d_s = p * (d_p - _at(delta, row))
            if d_table is not None:
                d_table += _by_bucket(d_s, distance_BTS, scoring.edges)
            if scoring.softcap is not None:
                # No more than 1, in hidden places too.
                d_s *= 1 - jnp.square(jnp.maximum(scores / scoring.softcap, -1))
            d_s = (d_s * scoring.scale_of(q.shape[-1])).astype(q.dtype)
            d_k += einsum_fp32("BKGTH,BKGTS->BKHS", q_BKGTH, d_s)
            d_q_row = _at(d_q, row) + einsum_fp32("BKGTS,BKSH->BKGTH", d_s, k_BKSH)
            d_q = lax.dynamic_update_index_in_dim(d_q, d_q_row, row, axis=0)
            return d_q, d_table, d_k, d_v

        zeros = varying_zeros(k_BKSH.mT.shape, *like), varying_zeros(v_BKSH.mT.shape, *like)
        *sums, d_k, d_v = _loop(
            who.of_keys, index, lambda row: who.sees(row, index), row, (*sums, *zeros)
        )
        return tuple(sums), (d_k.mT, d_v.mT)

    start = varying_zeros(q.shape, *like), _empty_table(scoring.table_NX, num_kv_heads, like)
    (d_q, d_table), (d_k, d_v) = lax.scan(column, start, jnp.arange(k.shape[0], dtype=jnp.int32))
    gradients = (
        _from_query_tiles(d_q, q_BTNH.shape[1]).astype(q_BTNH.dtype),
        _from_key_tiles(d_k, k_BSKH.shape[1]).astype(k_BSKH.dtype),
        _from_key_tiles(d_v, k_BSKH.shape[1]).astype(v_BSKH.dtype),
    )
    return gradients if d_table is None else (*gradients, d_table.reshape(-1, d_table.shape[2]))


class _Who(NamedTuple):
    """The mask, cut into tiles, and which tiles meet.

    Attributes:
      queries: (rows, B, 2, T / rows): segments and ranks.
      keys: (columns, B, 3, S / columns): segments, from and until.
      of_queries: `visit_table` (rows, 3 + columns) for the whole batch, which a tile holds. None is
        listed as full: one loop masks every tile, and the program contains the products once.
      of_keys: likewise, (columns, 3 + rows).
    """

    queries: jax.Array
    keys: jax.Array
    of_queries: jax.Array
    of_keys: jax.Array

    @classmethod
    def of(cls, mask: Mask, q: jax.Array, k: jax.Array) -> _Who:
        """Cut as `_query_tiles` and `_key_tiles` have cut."""
        q_block, kv_block = q.shape[-2], k.shape[-2]
        filled = fill_blocks(mask, q_block, kv_block)
        meet = meetings(filled, q_block, kv_block)[0].any(axis=0)
        tables = (visit_table(tiles, jnp.zeros_like(tiles)) for tiles in (meet, meet.T))

        def cut(x: jax.Array, block: int) -> jax.Array:
            return jnp.moveaxis(x.reshape(*x.shape[:2], -1, block), 2, 0)

        short = filled.q_least_BT is not None
        queries, keys = (
            least_words(filled, q_block, kv_block) if short else (filled.queries, filled.keys)
        )
        return cls(cut(queries, q_block), cut(keys, kv_block), *tables)

    def sees(self, row: jax.Array, column: jax.Array) -> jax.Array:
        """Return bool (B, T, S): which keys of a column each query of a row sees."""
        queries, keys = _at(self.queries, row)[:, :, :, None], _at(self.keys, column)[:, :, None, :]
        if keys.shape[1] == 1:
            return keys[:, 0] - queries[:, 0] < queries[:, 1]
        return sees(*jnp.unstack(queries, axis=1), *jnp.unstack(keys, axis=1))

    def distance(self, row: jax.Array, column: jax.Array) -> jax.Array:
        """Return int32 (B, T, S): ranks less `from`; any number where a query does not see a key."""
        queries, keys = _at(self.queries, row)[:, :, :, None], _at(self.keys, column)[:, :, None, :]
        if keys.shape[1] == 1:  # least and count = rank - least + 1
            ranks, starts = queries[:, 0] + queries[:, 1] - 1, keys[:, 0]
        else:
            ranks, starts = queries[:, 1], keys[:, 1]
        return (ranks - starts).astype(jnp.int32)


def _scores(
    q_BKGTH: jax.Array,
    k_BKSH: jax.Array,
    scoring: Scoring,
    seen_BTS: jax.Array,
    distance_BTS: jax.Array,
) -> jax.Array:
    """Return a tile's fp32 scores (B, K, G, T, S), `NOTHING_SEEN` where they are hidden."""
    heads = q_BKGTH.shape[1:3]
    scores = einsum_fp32("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH) * scoring.scale_of(q_BKGTH.shape[-1])
    if scoring.softcap is not None:
        scores = scoring.softcap * jnp.tanh(scores / scoring.softcap)
    if scoring.slopes_N is not None:
        slopes = scoring.slopes_N.astype(jnp.float32).reshape(*heads, 1, 1)
        scores -= slopes * distance_BTS[:, None, None]
    if scoring.table_NX is not None:
        table = scoring.table_NX.astype(jnp.float32).reshape(*heads, 1, 1, -1)
        scores += _of_buckets(table, distance_BTS[:, None, None], scoring.edges)
    return jnp.where(seen_BTS[:, None, None], scores, NOTHING_SEEN)


def _of_buckets(table: jax.Array, distance: jax.Array, edges: tuple[int, ...]) -> jax.Array:
    """Return each distance's place of a table (..., X): a choice after the other, which the
    compiler makes one loop of, where an index would be a slow gather on accelerators.
    """
    chosen = table[..., 0]
    for number, edge in enumerate(edges, start=1):
        chosen = jnp.where(distance >= edge, table[..., number], chosen)
    return chosen


def _by_bucket(d_s_BKGTS: jax.Array, distance_BTS: jax.Array, edges: tuple[int, ...]) -> jax.Array:
    """Sum the scores' gradients in each bucket, (K, G, X)."""
    bucket_BTS = jnp.zeros_like(distance_BTS)
    for edge in edges:
        bucket_BTS += distance_BTS >= edge
    own = bucket_BTS[:, None, None, ..., None] == jnp.arange(len(edges) + 1)
    return jnp.where(own, d_s_BKGTS[..., None], 0).sum(axis=(0, 3, 4))


def _empty_table(table_NX: jax.Array | None, num_kv_heads: int, like: Any) -> jax.Array | None:
    if table_NX is None:
        return None
    return varying_zeros(
        (num_kv_heads, table_NX.shape[0] // num_kv_heads, table_NX.shape[1]), *like
    )


def _loop(
    table: jax.Array,
    index: jax.Array,
    sees: Callable[[jax.Array], jax.Array],
    body: Callable[..., Any],
    carry: Any,
) -> Any:
    """Run carry = body(tile, sees(tile), carry) over the tiles that a tile meets; a single one
    without a loop.
    """
    if table.shape[1] == TABLE_HEAD + 1:
        return body(jnp.int32(0), sees(jnp.int32(0)), carry)
    visits = Visits.of(table, index)

    def step(
        number: jax.Array, state: tuple[jax.Array, jax.Array, Any]
    ) -> tuple[jax.Array, jax.Array, Any]:
        tile, seen, carry = state
        following = visits.masked_block(number + 1)
        return following, sees(following), body(tile, seen, carry)

    # The next tile and its mask are carried, and so written down: the CPU's compiler would compute
    # them again for each head, twice, in loops that it cannot make use of vector instructions in.
    first = visits.masked_block(0)
    return lax.fori_loop(0, visits.masked, step, (first, sees(first), carry))[2]


def _query_tiles(x_BTNH: jax.Array, num_kv_heads: int) -> jax.Array:
    """Cut queries into rows: (B, T, N, H) -> (rows, B, K, G, T / rows, H)."""
    num_heads, width = x_BTNH.shape[2:]
    tiles = _tiles(x_BTNH)
    grouped = tiles.reshape(*tiles.shape[:3], num_kv_heads, num_heads // num_kv_heads, width)
    return grouped.transpose(1, 0, 3, 4, 2, 5)


def _key_tiles(x_BSKH: jax.Array, block: int | None = None) -> jax.Array:
    """Cut keys or values into columns: (B, S, K, H) -> (columns, B, K, S / columns, H)."""
    return _tiles(x_BSKH, block).transpose(1, 0, 3, 2, 4)


def _from_query_tiles(x: jax.Array, length: int) -> jax.Array:
    """(rows, B, K, G, T / rows, H) -> (B, T, N, H)."""
    _, batch, num_kv_heads, num_groups, _, width = x.shape
    return x.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, num_kv_heads * num_groups, width)[
        :, :length
    ]


def _from_key_tiles(x: jax.Array, length: int) -> jax.Array:
    """(columns, B, K, S / columns, H) -> (B, S, K, H)."""
    _, batch, num_kv_heads, _, width = x.shape
    return x.transpose(1, 0, 3, 2, 4).reshape(batch, -1, num_kv_heads, width)[:, :length]


def _tiles(x: jax.Array, block: int | None = None) -> jax.Array:
    """Cut the second dimension into tiles, the last filled with zeros: (B, T, ...) -> (B, tiles, T
    / tiles, ...); of `block_size` by default.
    """
    block = block or block_size(x.shape[1])
    missing = -x.shape[1] % block
    filled = (
        jnp.pad(x, [(0, missing if axis == 1 else 0) for axis in range(x.ndim)]) if missing else x
    )
    return filled.reshape(x.shape[0], -1, block, *x.shape[2:])


def block_size(length: int) -> int:
    """Return how many tokens a tile of a sequence has: all of a short one, 128 below 512 tokens, and
    1/16 in tiles of 256 to 512 above, unless 256 would fill up more than 128.
    """
    large = length >= 4 * MIN_BLOCK and -length % (2 * MIN_BLOCK) < MIN_BLOCK
    least = 2 * MIN_BLOCK if large else MIN_BLOCK
    return min(length, max(least, min(-(-length // (16 * MIN_BLOCK)) * MIN_BLOCK, MAX_BLOCK)))


def _at(tiles: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(tiles, index, keepdims=False)
