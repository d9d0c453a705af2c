"""Ring attention (arXiv:2310.01889): keys and values travel around `context`, each device attends to what is passing.

Composed of an implementation's forward/backward pair and nothing else: partial results are merged by their
log-sum-exp, and the gradients of keys and values travel along with them. Each device holds two chunks of the sequence
(`maxlm.sharding.context`), so a block meets the queries as pairs of contiguous chunks. Pairs that cannot see each
other (in the future, before the window, no document in common) are not computed.

Collectives of one layer, with c devices along `context` and T / c tokens on each:

* forward: c - 1 permutes of the keys, of the values and of their segment ids;
* backward: the same, and c permutes of the gradients of keys and of values, in fp32: the last one brings them home.

If the window reaches back no more than w chunks and 2 w < c - 1, blocks go to the w neighbours on either side (late
chunks lie in the opposite order) and no farther: 2 w permutes instead of c - 1, and 2 w + 2 instead of c.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.jax_versions import vary_over, varying_axes
from maxlm.kernels.mask import NOTHING_SEEN, Mask
from maxlm.ops.attention import Implementation, merge_partial
from maxlm.sharding.context import chunk_numbers, halves


class _Block(NamedTuple):
    """What travels: keys and values of one device's two chunks, and their documents."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    segments_BS: jax.Array


class _Pair(NamedTuple):
    """A chunk of queries and a chunk of keys: which half of the device's tokens each is, who sees whom, if anyone."""

    query: int
    key: int
    mask: Mask
    meet: jax.Array


# visit(hops, block, carry) -> (carry, gradients of the block): work on the block of the device so many hops back.
_Visit = Callable[[jax.Array | int, _Block, Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class RingAttention:
    """An implementation for a sequence split over `context`, made of one for a contiguous sequence."""

    kernel: Implementation

    def forward(
        self, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask
    ) -> tuple[jax.Array, jax.Array]:
        """Attend from this device's queries to the keys of all devices; return out and lse as a kernel does."""
        # Ties the mask to data that depends on parameters: autodiff would otherwise compute all pairs' masks ahead, as
        # these depend on nothing that is differentiated, and keep them, T^2 / c of them.
        q_BTNH, mask = lax.optimization_barrier((q_BTNH, mask))
        home = _Block(k_BSKH, v_BSKH, mask.kv_segments_BS)
        queries = halves(q_BTNH)

        def visit(hops: jax.Array | int, block: _Block, results: list[Any]) -> tuple[list[Any], Any]:
            keys, values = halves(block.k_BSKH), halves(block.v_BSKH)
            for query, key, pair_mask, meet in _pairs(hops, block, mask):

                def attend(result: Any, operands: tuple[Any, ...]) -> Any:
                    return merge_partial(result, self.kernel.forward(*operands))

                operands = (queries[query], keys[key], values[key], pair_mask)
                results[query] = lax.cond(meet, attend, _unchanged, results[query], operands)
            return results, ()

        batch, length, num_heads, _ = queries[0].shape
        out = _zeros((batch, length, num_heads, v_BSKH.shape[3]), q_BTNH, *home)
        lse = _zeros((batch, num_heads, length), q_BTNH, *home) + NOTHING_SEEN
        results, _ = _visit_all(home, mask, visit, [(out, lse), (out, lse)])
        outs, lses = zip(*results, strict=True)
        return jnp.concatenate(outs, axis=1).astype(q_BTNH.dtype), jnp.concatenate(lses, axis=2)

    def backward(
        self,
        q_BTNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        out_BTNH: jax.Array,
        lse_BNT: jax.Array,
        d_out_BTNH: jax.Array,
        mask: Mask,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the gradients of this device's queries, keys and values.

        Given the lse of the whole softmax, a kernel's backward pass over some of the keys yields their part of it.
        """
        home = _Block(k_BSKH, v_BSKH, mask.kv_segments_BS)
        given = list(zip(*map(halves, (q_BTNH, out_BTNH)), halves(lse_BNT, axis=2), halves(d_out_BTNH), strict=True))

        def visit(hops: jax.Array | int, block: _Block, d_queries: list[Any]) -> tuple[list[Any], Any]:
            blocks = list(zip(halves(block.k_BSKH), halves(block.v_BSKH), strict=True))
            d_blocks = [tuple(_zeros(x.shape, q_BTNH, *home) for x in half) for half in blocks]
            for query, key, pair_mask, meet in _pairs(hops, block, mask):

                def add(sums: Any, operands: tuple[Any, ...]) -> Any:
                    (q, out, lse, d_out), (k, v), pair_mask = operands
                    parts = self.kernel.backward(q, k, v, out, lse, d_out, pair_mask)
                    return jax.tree.map(lambda total, part: total + part.astype(total.dtype), sums, parts)

                sums = (d_queries[query], *d_blocks[key])
                operands = (given[query], blocks[key], pair_mask)
                d_queries[query], *d_block = lax.cond(meet, add, _unchanged, sums, operands)
                d_blocks[key] = tuple(d_block)
            return d_queries, tuple(jnp.concatenate(chunks, axis=1) for chunks in zip(*d_blocks, strict=True))

        d_query = _zeros(given[0][0].shape, q_BTNH, *home)
        d_queries, (d_k, d_v) = _visit_all(home, mask, visit, [d_query, d_query])
        d_q = jnp.concatenate(d_queries, axis=1)
        return d_q.astype(q_BTNH.dtype), d_k.astype(k_BSKH.dtype), d_v.astype(v_BSKH.dtype)


def _visit_all(home: _Block, mask: Mask, visit: _Visit, carry: Any) -> tuple[Any, Any]:
    """Work on this device's block, then on the others; return the carry and the gradients of this device's block."""
    carry, d_home = visit(0, home, carry)
    for direction, length in _journeys(mask, home.k_BSKH.shape[1] // 2):
        carry, d_home = _travel(home, d_home, visit, carry, direction=direction, length=length)
    return carry, d_home


def _travel(home: _Block, d_home: Any, visit: _Visit, carry: Any, *, direction: int, length: int) -> tuple[Any, Any]:
    """Send every block to the `length` devices next to it, one after the other; its gradients go along and return."""

    def work(hops: jax.Array | int, block: _Block, d_block: Any, carry: Any) -> tuple[Any, Any]:
        # The gradients of the block that is here arrive only now: they are on their way while it is worked on.
        arriving = _send(d_block, direction)
        carry, added = visit(direction * hops, block, carry)
        return jax.tree.map(jnp.add, arriving, added), carry

    def step(hops: jax.Array, state: tuple[_Block, Any, Any]) -> tuple[_Block, Any, Any]:
        block, d_block, carry = state
        following = _send(block, direction)
        return following, *work(hops, block, d_block, carry)

    # Does not wait for the work on this device's own block, which does not touch it.
    state = (_send(home, direction), d_home, carry)
    block, d_block, carry = lax.fori_loop(1, length, step, state) if length > 1 else state
    d_block, carry = work(length, block, d_block, carry)
    return carry, _send(d_block, -direction * length)


def _journeys(mask: Mask, chunk: int) -> list[tuple[int, int]]:
    """Return (direction, length) of the ways on which a block meets every chunk that can see some of it."""
    others = lax.axis_size("context") - 1
    reach = _reach(mask, chunk)
    return [(1, others)] if reach is None or 2 * reach >= others else [(1, reach), (-1, reach)] if reach else []


def _reach(mask: Mask, chunk: int) -> int | None:
    """Return how many chunks back a query can see, None for all; the nearest key j back is (j - 1) chunk + 1 away."""
    return -(-(mask.window - 1) // chunk) if mask.causal and mask.window is not None else None


def _pairs(hops: jax.Array | int, block: _Block, mask: Mask) -> Iterator[_Pair]:
    """Yield the pairs of this device's queries and the keys that came so many hops."""
    device = lax.axis_index("context")
    q_segments, kv_segments = halves(mask.q_segments_BT), halves(block.segments_BS)
    chunk, reach = kv_segments[0].shape[1], _reach(mask, kv_segments[0].shape[1])
    for query, q_number in enumerate(chunk_numbers(device)):
        for key, kv_number in enumerate(chunk_numbers((device - hops) % lax.axis_size("context"))):
            if mask.causal and key > query:
                continue  # every late chunk is after every early one
            meet = _share_documents(q_segments[query], kv_segments[key])
            meet &= kv_number <= q_number if mask.causal else True
            meet &= q_number - kv_number <= reach if reach is not None else True
            pair_mask = dataclasses.replace(
                mask,
                q_segments_BT=q_segments[query],
                kv_segments_BS=kv_segments[key],
                q_start=q_number * chunk,
                kv_start=kv_number * chunk,
            )
            yield _Pair(query, key, pair_mask, meet)


def _share_documents(q_segments_BT: jax.Array, kv_segments_BS: jax.Array) -> jax.Array:
    """Return whether in any row the ranges of document numbers overlap: False only if no two tokens share one."""
    starts_before = q_segments_BT.min(axis=1) <= kv_segments_BS.max(axis=1)
    ends_after = q_segments_BT.max(axis=1) >= kv_segments_BS.min(axis=1)
    return jnp.any(starts_before & ends_after)


def _send(tree: Any, hops: int) -> Any:
    """Permute arrays around the ring."""
    devices = lax.axis_size("context")
    ring = [(device, (device + hops) % devices) for device in range(devices)]
    return jax.tree.map(functools.partial(lax.ppermute, axis_name="context", perm=ring), tree)


def _unchanged(state: Any, _: Any) -> Any:
    return state


def _zeros(shape: tuple[int, ...], *like: jax.Array) -> jax.Array:
    """Return fp32 zeros that vary over the mesh axes that the given arrays vary over (a loop's carry must)."""
    return vary_over(jnp.zeros(shape, jnp.float32), varying_axes(*like))
