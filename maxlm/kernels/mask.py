"""Which query may see which key, in the few numbers that every attention kernel needs to skip blocks."""

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


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("q_segments_BT", "kv_segments_BS", "q_start", "kv_start"),
    meta_fields=("causal", "window"),
)
@dataclasses.dataclass(frozen=True)
class Mask:
    """A query sees a key of its own segment that is not later (causal) and less than `window` tokens back.

    Attributes:
      q_segments_BT: int32 document number of each query, >= 1 for real tokens.
      kv_segments_BS: int32 document number of each key; 0 is never seen.
      q_start: int32 scalar, index of the first query in the sequence (ring attention, decoding).
      kv_start: int32 scalar, index of the first key in the sequence.
      causal: whether later keys are hidden.
      window: keys this far back or farther are hidden; None hides none.
    """

    q_segments_BT: jax.Array
    kv_segments_BS: jax.Array
    q_start: jax.Array
    kv_start: jax.Array
    causal: bool = True
    window: int | None = None


def visible(q_index: jax.Array, kv_index: jax.Array, *, causal: bool, window: int | None) -> jax.Array:
    """Return bool (T, S): which keys the positions alone let each query see."""
    distance = q_index[:, None] - kv_index[None, :]
    seen = jnp.ones(distance.shape, bool)
    if causal:
        seen &= distance >= 0
    if window is not None:
        seen &= distance < window
    return seen


class BlockRanges(NamedTuple):
    """Which blocks a kernel visits: int32 (B, rows, 4) for each block of queries, (B, columns, 4) for each of keys.

    The four numbers (first, full_first, full_end, end) mean: blocks [first, end) may hold pairs that see each other;
    in [full_first, full_end) every pair does, so that they need no mask.
    """

    of_queries: jax.Array
    of_keys: jax.Array


@dataclasses.dataclass(frozen=True)
class Visits:
    """The blocks to visit, for each query head of a group: those that need a mask come first, for all heads."""

    before: jax.Array
    masked: jax.Array
    full: jax.Array
    first: jax.Array
    full_first: jax.Array
    full_end: jax.Array
    groups: int

    @classmethod
    def of(cls, ranges: Any, batch: jax.Array, index: jax.Array, groups: int = 1) -> Visits:
        """Read a block's range."""
        first, full_first, full_end, end = (ranges[batch, index, i] for i in range(4))
        before = full_first - first
        return cls(before, before + end - full_end, full_end - full_first, first, full_first, full_end, groups)

    @property
    def count(self) -> jax.Array:
        """Return how many there are."""
        return (self.masked + self.full) * self.groups

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


def comparable_segments(mask: Mask, q_block: int, kv_block: int) -> tuple[jax.Array, jax.Array]:
    """Return the segments of queries and keys, filled up to whole blocks; equal means visible, positions aside.

    Keys that are never seen get -1 and queries that see nothing -2, so that a kernel needs one comparison.
    """

    def prepare(segments: jax.Array, block: int, hidden: int) -> jax.Array:
        filled = jnp.pad(segments, ((0, 0), (0, -segments.shape[1] % block)))
        return jnp.where(filled > 0, filled, hidden)

    return prepare(mask.q_segments_BT, q_block, -2), prepare(mask.kv_segments_BS, kv_block, -1)


def block_ranges(mask: Mask, q_block: int, kv_block: int) -> BlockRanges:
    """Return the blocks to visit, from positions and from the least and greatest segment of each block.

    Exact where a row's documents lie one after the other, as packing lays them; otherwise a range may contain blocks
    that see nothing of each other.
    """
    q_segments, kv_segments = comparable_segments(mask, q_block, kv_block)
    q_least, q_greatest, q_only = (x[:, :, None] for x in _segment_bounds(q_segments, q_block))
    kv_least, kv_greatest, kv_only = (x[:, None, :] for x in _segment_bounds(kv_segments, kv_block))
    meet = (q_least <= kv_greatest) & (kv_least <= q_greatest)
    full = (q_only > 0) & (q_only == kv_only)
    q_first = mask.q_start + q_block * jnp.arange(meet.shape[1], dtype=jnp.int32)[:, None]
    kv_first = mask.kv_start + kv_block * jnp.arange(meet.shape[2], dtype=jnp.int32)
    nearest, farthest = q_first - (kv_first + kv_block - 1), q_first + q_block - 1 - kv_first
    if mask.causal:
        meet, full = meet & (farthest >= 0), full & (nearest >= 0)
    if mask.window is not None:
        meet, full = meet & (nearest < mask.window), full & (farthest < mask.window)
    return BlockRanges(_ranges(meet, full), _ranges(meet.mT, full.mT))


def _segment_bounds(segments: jax.Array, block: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return, of each block, the least and greatest segment, and the segment if there is only one, else -1."""
    blocks = segments.reshape(segments.shape[0], -1, block)
    least, greatest = jnp.where(blocks > 0, blocks, jnp.iinfo(jnp.int32).max).min(axis=2), blocks.max(axis=2)
    return least, greatest, jnp.where(blocks.min(axis=2) == greatest, greatest, -1)


def _ranges(meet: jax.Array, full: jax.Array) -> jax.Array:
    """Turn bool (B, X, Y) into ranges of Y: (B, X, 4)."""
    index, count = jnp.arange(meet.shape[2], dtype=jnp.int32), meet.shape[2]
    first = jnp.where(meet, index, count).min(axis=2)
    end = jnp.where(meet, index + 1, 0).max(axis=2)
    full_first = jnp.where(full, index, count).min(axis=2)
    full_end = jnp.where(~full & (index >= full_first[:, :, None]), index, count).min(axis=2)
    # Nothing met: 0, 0. Nothing full: end, end.
    return jnp.stack([jnp.minimum(first, end), *(jnp.minimum(x, end) for x in (full_first, full_end)), end], axis=2)
