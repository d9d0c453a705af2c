"""Which query may see which key, as data, and which blocks of them a kernel visits.

A query has a rank, a key an interval of the ranks that see it. With a token's place in the sequence
as its rank:

  causal          from = place,                until = everything
  window w        from = place,                until = place + w
  bidirectional   from = 0,                    until = everything
  prefix          from = 0 for the prefix's keys, their place for others
  chunks          from = first place of the key's chunk, until = first place of the next one
  [noised|clean]  ranks 2 b and 2 b + 1 in block b: noised keys [2 b, 2 b + 1), clean keys [2 b + 1, everything)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

NOTHING_SEEN = -1e30
"""Log-sum-exp of a row that sees no key; finite, so that it must not become nan."""
EVERYTHING = jnp.iinfo(jnp.int32).max
"""Above every rank."""
TABLE_HEAD = 3
"""Numbers in a row of a `visit_table` before the list of blocks."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=(
        "q_segments_BT",
        "kv_segments_BS",
        "q_rank_BT",
        "kv_from_BS",
        "kv_until_BS",
        "q_least_BT",
    ),
    meta_fields=("reach", "causal"),
)
@dataclasses.dataclass(frozen=True)
class Mask:
    """A query sees a key of its own segment if its rank is in [from, until) of the key.

    Attributes:
      q_segments_BT: int32 document number of each query, >= 1 for real tokens.
      kv_segments_BS: int32 document number of each key; 0 is never seen.
      q_rank_BT: int32 rank of each query.
      kv_from_BS: int32, least rank that sees the key.
      kv_until_BS: int32, least rank above those that see the key.
      reach: a promise, not a rule: no query sees a key that lies `reach` or more tokens before it
        in the sequence, nor one after it. EVERYTHING promises the latter alone, None nothing. Ring
        attention sends blocks to no more neighbours than it takes, and whoever estimates the work
        counts by it.
      q_least_BT: None, or the same said shorter: a query sees the keys, but those of segment 0,
        whose `from` is in [least, rank]. No number is negative. Kernels then compare one number of
        a key; see `with_least`.
      causal: whether `causal` made it, so that a query sees itself and all that is before it in its
        document, less than `reach` tokens back.
    """

    q_segments_BT: jax.Array
    kv_segments_BS: jax.Array
    q_rank_BT: jax.Array
    kv_from_BS: jax.Array
    kv_until_BS: jax.Array
    reach: int | None = None
    q_least_BT: jax.Array | None = None
    causal: bool = False

    @property
    def queries(self) -> jax.Array:
        """Return what is known of queries as one array, (B, 2, T), or (B, 3, T) if `least` is."""
        least = [] if self.q_least_BT is None else [self.q_least_BT]
        return jnp.stack([self.q_segments_BT, self.q_rank_BT, *least], axis=1)

    @property
    def keys(self) -> jax.Array:
        """Return what is known of keys as one array, (B, 3, S)."""
        return jnp.stack([self.kv_segments_BS, self.kv_from_BS, self.kv_until_BS], axis=1)

    @classmethod
    def of(cls, queries: jax.Array, keys: jax.Array, reach: int | None = None) -> Mask:
        """Undo `queries` and `keys`."""
        q_segments, q_rank, *least = jnp.unstack(queries, axis=1)
        kv_segments, kv_from, kv_until = jnp.unstack(keys, axis=1)
        return cls(
            q_segments, kv_segments, q_rank, kv_from, kv_until, reach, least[0] if least else None
        )


def causal(
    segments_BT: jax.Array,
    place_BT: jax.Array,
    window: int | None = None,
    *,
    kv_segments_BS: jax.Array | None = None,
    kv_place_BS: jax.Array | None = None,
) -> Mask:
    """Return the mask that hides what is later, and what is `window` or more tokens back.

    The documents of a row lie one after the other: `with_least` relies on it.

    Args:
      segments_BT: int32 document numbers.
      place_BT: int32 place of each query in the sequence.
      window: None hides nothing that is earlier.
      kv_segments_BS: of the keys, where these are not the queries' own tokens.
      kv_place_BS: likewise.
    """
    kv_segments_BS = segments_BT if kv_segments_BS is None else kv_segments_BS
    kv_place_BS = place_BT if kv_place_BS is None else kv_place_BS
    everything = jnp.full_like(kv_place_BS, EVERYTHING)
    mask = Mask(
        segments_BT, kv_segments_BS, place_BT, kv_place_BS, everything, EVERYTHING, causal=True
    )
    return mask if window is None else windowed(mask, kv_place_BS, window)


def windowed(mask: Mask, kv_rank_BS: jax.Array, window: int) -> Mask:
    """Hide each key from queries whose rank is `window` or more above its own, besides those that
    do not see it.
    """
    window = min(window, EVERYTHING)
    until = jnp.minimum(kv_rank_BS, EVERYTHING - window) + window
    least = (
        None
        if mask.q_least_BT is None
        else jnp.maximum(mask.q_least_BT, mask.q_rank_BT - (window - 1))
    )
    reach = None if mask.reach is None else min(mask.reach, window)
    until = jnp.minimum(mask.kv_until_BS, until)
    return dataclasses.replace(mask, kv_until_BS=until, reach=reach, q_least_BT=least)


def in_chunks(mask: Mask, positions_BS: jax.Array, chunk: int) -> Mask:
    """Hide each key from queries of later chunks of its document, besides those that do not see it.

    Args:
      mask: of tokens that are queries and keys alike, or of keys alone (`Mask.q_least_BT` is None);
        a key's `from` is its place.
      positions_BS: int32, of the keys in their documents, counted from 0: chunks start at multiples
        of `chunk`.
      chunk: tokens of a chunk, all but the last of a document.
    """
    chunk = min(chunk, EVERYTHING)
    into_BS = positions_BS % chunk
    left_BS = jnp.minimum(chunk - into_BS, EVERYTHING - mask.kv_from_BS)
    least = (
        None if mask.q_least_BT is None else jnp.maximum(mask.q_least_BT, mask.q_rank_BT - into_BS)
    )
    return dataclasses.replace(
        mask,
        kv_until_BS=jnp.minimum(mask.kv_until_BS, mask.kv_from_BS + left_BS),
        reach=None if mask.reach is None else min(mask.reach, chunk),
        q_least_BT=least,
        causal=False,
    )


def with_least(mask: Mask, segments_BS: jax.Array) -> Mask:
    """Add `q_least_BT` to a mask of `causal`; others stay as they are.

    A row's documents lie one after the other, as packing lays them: what a query sees starts where
    its document does, or its window.

    Args:
      mask: of a row's tokens, or of some of them, which are queries and keys alike; ranks are
        places in the row.
      segments_BS: of the whole row.
    """
    if not mask.causal or mask.reach is None:
        return mask
    place = mask.q_rank_BT
    borders = jnp.pad(
        segments_BS[:, 1:] != segments_BS[:, :-1], ((0, 0), (1, 0)), constant_values=True
    )
    starts = lax.cummax(
        jnp.where(borders, jnp.arange(segments_BS.shape[1], dtype=jnp.int32), 0), axis=1
    )
    if starts.shape != place.shape:
        starts = jnp.take_along_axis(starts, place, axis=1)
    least = jnp.maximum(starts, place - (mask.reach - 1))
    return dataclasses.replace(
        mask, q_least_BT=jnp.where(mask.q_segments_BT > 0, least, EVERYTHING)
    )


def sees(
    q_segment: jax.Array,
    q_rank: jax.Array,
    kv_segment: jax.Array,
    kv_from: jax.Array,
    kv_until: jax.Array,
) -> jax.Array:
    """Return whether queries see keys, of arrays that broadcast; segments are those of
    `fill_blocks`.
    """
    return (q_segment == kv_segment) & (kv_from <= q_rank) & (q_rank < kv_until)


def fill_blocks(mask: Mask, q_block: int, kv_block: int) -> Mask:
    """Fill up to whole blocks, and number the segments so that a kernel needs one comparison.

    Keys that are never seen, as the filling, get segment -1, and queries that see nothing -2.
    """

    def fill(x: jax.Array, block: int) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block))) if x.shape[1] % block else x

    def hide(segments: jax.Array, hidden: int) -> jax.Array:
        return jnp.where(segments > 0, segments, hidden)

    return dataclasses.replace(
        mask,
        q_segments_BT=hide(fill(mask.q_segments_BT, q_block), -2),
        kv_segments_BS=hide(fill(mask.kv_segments_BS, kv_block), -1),
        q_rank_BT=fill(mask.q_rank_BT, q_block),
        kv_from_BS=fill(mask.kv_from_BS, kv_block),
        kv_until_BS=fill(mask.kv_until_BS, kv_block),
        q_least_BT=None if mask.q_least_BT is None else fill(mask.q_least_BT, q_block),
    )


def words(mask: Mask, q_block: int, kv_block: int) -> tuple[jax.Array, jax.Array]:
    """Return uint32 (B, 2, T), segment and rank, and (B, 3, S), segment, from and count, filled up
    to whole blocks.

    Two comparisons then tell whether a query sees a key: of their segments, and
    `rank - from < count`. Without signs a rank below `from` wraps round to 2^32 - (from - rank),
    which is no less than `count`, for until - rank <= 2^32.
    """
    mask = fill_blocks(mask, q_block, kv_block)
    count = jnp.where(mask.kv_from_BS < mask.kv_until_BS, mask.kv_until_BS - mask.kv_from_BS, 0)
    queries, keys = (
        (mask.q_segments_BT, mask.q_rank_BT),
        (mask.kv_segments_BS, mask.kv_from_BS, count),
    )
    return jnp.stack(queries, axis=1).astype(jnp.uint32), jnp.stack(keys, axis=1).astype(jnp.uint32)


def least_words(mask: Mask, q_block: int, kv_block: int) -> tuple[jax.Array, jax.Array]:
    """Return uint32 (B, 2, T), least and count, and (B, 1, S), from, filled up to whole blocks, if
    `least` is known.

    One comparison then tells whether a query sees a key, `from - least < count`, without signs as
    in `words`. Keys that are never seen are 2^32 - 1, which is in no query's range, and queries
    that see nothing have a count of 0.
    """
    mask = fill_blocks(mask, q_block, kv_block)
    least, rank = mask.q_least_BT, mask.q_rank_BT
    assert least is not None
    count = jnp.where((mask.q_segments_BT > 0) & (least <= rank), rank - least + 1, 0)
    start = jnp.where(mask.kv_segments_BS > 0, mask.kv_from_BS, -1)
    return jnp.stack([least, count], axis=1).astype(jnp.uint32), start[:, None].astype(jnp.uint32)


def meetings(mask: Mask, q_block: int, kv_block: int) -> tuple[jax.Array, jax.Array]:
    """Return bool (B, blocks of queries, blocks of keys) twice: which may see something, and which
    see all.

    From the least and the greatest segment, rank, from and until of each block. Exact where a row's
    documents lie one after the other, as packing lays them; otherwise blocks may be said to meet
    that see nothing of each other.
    """
    mask = fill_blocks(mask, q_block, kv_block)

    def bounds(
        x: jax.Array, segments: jax.Array, block: int, axis: int
    ) -> tuple[jax.Array, jax.Array]:
        x, real = (y.reshape(y.shape[0], -1, block) for y in (x, segments > 0))
        limits = jnp.iinfo(jnp.int32)
        least, greatest = (
            jnp.where(real, x, limits.max).min(axis=2),
            jnp.where(real, x, limits.min).max(axis=2),
        )
        return jnp.expand_dims(least, axis), jnp.expand_dims(greatest, axis)

    of_queries = functools.partial(bounds, segments=mask.q_segments_BT, block=q_block, axis=2)
    of_keys = functools.partial(bounds, segments=mask.kv_segments_BS, block=kv_block, axis=1)
    q_least, q_greatest = of_queries(mask.q_segments_BT)
    kv_least, kv_greatest = of_keys(mask.kv_segments_BS)
    (rank_least, rank_greatest), (from_least, from_greatest) = (
        of_queries(mask.q_rank_BT),
        of_keys(mask.kv_from_BS),
    )
    until_least, until_greatest = of_keys(mask.kv_until_BS)
    meet = (q_least <= kv_greatest) & (kv_least <= q_greatest)
    meet &= (from_least <= rank_greatest) & (rank_least < until_greatest)
    q_all, kv_all = (
        (x.reshape(x.shape[0], -1, block) > 0).all(axis=2)
        for x, block in ((mask.q_segments_BT, q_block), (mask.kv_segments_BS, kv_block))
    )
    full = meet & q_all[:, :, None] & kv_all[:, None, :]
    full &= (q_least == q_greatest) & (kv_least == kv_greatest) & (q_least == kv_least)
    full &= (from_greatest <= rank_least) & (rank_greatest < until_least)
    return meet, full


def visit_table(meet: jax.Array, full: jax.Array, unit: int = 1) -> jax.Array:
    """Turn bool (..., Y) into what `Visits` reads: int32 (..., 3 + Y).

    The longest run of full blocks is a range, so that a kernel's main loop counts. All others that
    meet are listed, and need a mask:
    `full_first, full_end, number of the others, the others in order`.

    Args:
      meet: blocks that may hold pairs that see each other.
      full: blocks in which every pair does.
      unit: the run is cut to a multiple of it.
    """
    index, count = jnp.arange(meet.shape[-1], dtype=jnp.int32), meet.shape[-1]
    run = index - lax.cummax(jnp.where(full, -1, index), axis=full.ndim - 1)
    longest = run.max(axis=-1, keepdims=True)
    full_end = jnp.argmax(run, axis=-1, keepdims=True).astype(jnp.int32) + 1
    full_first = full_end - longest // unit * unit
    masked = meet & ((index < full_first) | (index >= full_end))
    others = jnp.sort(jnp.where(masked, index, count), axis=-1)
    number = masked.sum(axis=-1, keepdims=True, dtype=jnp.int32)
    return jnp.concatenate([full_first, full_end, number, others], axis=-1)


class BlockRanges(NamedTuple):
    """Tables of the blocks to visit: int32 (B, rows, 3 + columns) for each block of queries, the
    other way for keys.
    """

    of_queries: jax.Array
    of_keys: jax.Array


def block_ranges(mask: Mask, q_block: int, kv_block: int) -> BlockRanges:
    """Return which blocks meet; see `meetings` and `visit_table`."""
    meet, full = meetings(mask, q_block, kv_block)
    return BlockRanges(visit_table(meet, full), visit_table(meet.mT, full.mT))


@dataclasses.dataclass(frozen=True)
class Visits:
    """The blocks to visit, for each query head of a group: those that need a mask come first, for
    all heads.
    """

    full_first: jax.Array
    full_end: jax.Array
    masked: jax.Array
    masked_block: Callable[[Any], jax.Array]
    groups: int

    @classmethod
    def of(cls, table: Any, *place: Any, groups: int = 1) -> Visits:
        """Read a block's row of a `visit_table`, an array or a reference to memory: table[*place]."""
        full_first, full_end, masked = (table[(*place, n)] for n in range(TABLE_HEAD))
        return cls(
            full_first,
            full_end,
            masked,
            lambda number: table[(*place, TABLE_HEAD + number)],
            groups,
        )

    @property
    def full(self) -> jax.Array:
        """Return how many need no mask."""
        return self.full_end - self.full_first

    @property
    def count(self) -> jax.Array:
        """Return how many there are."""
        return (self.masked + self.full) * self.groups

    def walk(self, visit: Callable[..., Any], carry: Any) -> Any:
        """Run carry = visit(n, carry, block=, group=, masked=) for visit n, to a block, for a head
        of the group.
        """

        def full_block(number: jax.Array) -> jax.Array:
            return self.full_first + number

        for start, length, block_at in (
            (0, self.masked, self.masked_block),
            (self.masked, self.full, full_block),
        ):

            def of_group(  # type: ignore[no-untyped-def]
                group: Any, carry: Any, start=start, length=length, block_at=block_at
            ) -> Any:
                first = start * self.groups + group * length

                def one(number: jax.Array, carry: Any) -> Any:
                    where = {
                        "block": block_at(number),
                        "group": group,
                        "masked": block_at is not full_block,
                    }
                    return visit(first + number, carry, **where)

                return lax.fori_loop(0, length, one, carry)

            carry = (
                of_group(0, carry)
                if self.groups == 1
                else lax.fori_loop(0, self.groups, of_group, carry)
            )
        return carry
