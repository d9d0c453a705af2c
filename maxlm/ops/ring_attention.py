"""Ring attention (arXiv:2310.01889): keys and values travel around `context`, each device attends
to what is passing.

Composed of an implementation's forward/backward pair and nothing else: partial results are merged
by their log-sum-exp, and the gradients of keys and values travel along with them. Each device holds
two chunks of the sequence (`maxlm.sharding.context`), so a block meets the queries as pairs of
contiguous chunks. Pairs that cannot see each other, by the least and greatest numbers that the mask
has for each, are not computed.

Collectives of one layer, with c devices along `context` and T / c tokens on each:

* forward: c - 1 permutes of the keys, of the values and of what the mask says of them, one array of
  integers;
* backward: the same, and c permutes of the gradients of keys and of values, in fp32: the last one
  brings them home.

If the mask promises that queries reach back no more than w chunks (`Mask.reach`) and 2 w < c - 1,
blocks go to the w neighbours on either side (late chunks lie in the opposite order) and no farther:
2 w permutes instead of c - 1, and 2 w + 2 instead of c.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.jax_versions import varying_zeros
from maxlm.kernels.mask import NOTHING_SEEN, Mask, meetings
from maxlm.kernels.shape import PLAIN, Scoring
from maxlm.ops.attention import Gradients, Pair, Partial, merge_partial
from maxlm.sharding.context import join_chunks, split_chunks


class _Block(NamedTuple):
    """What travels: keys, values and `Mask.keys` of one device's chunks, which are the leading
    dimension of 2.
    """

    keys: jax.Array
    values: jax.Array
    seen_by: jax.Array


# visit(block, carry) -> (carry, gradients of the block)
_Visit = Callable[[_Block, Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class RingAttention:
    """An implementation for a sequence split over `context`, made of one for a contiguous sequence."""

    kernel: Pair

    def forward(
        self,
        q_BTNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        mask: Mask,
        *,
        scoring: Scoring = PLAIN,
    ) -> Partial:
        """Attend from this device's queries to the keys of all devices; return out and lse as a
        kernel does.
        """
        # Ties the mask to data that depends on parameters: autodiff would otherwise compute all
        # pairs' masks ahead, as these depend on nothing that is differentiated, and keep them, T^2
        # / c of them.
        q_BTNH, mask = lax.optimization_barrier((q_BTNH, mask))
        queries, home = split_chunks(q_BTNH), _home(k_BSKH, v_BSKH, mask)

        def visit(block: _Block, results: Partial) -> tuple[Partial, tuple[()]]:
            def attend(
                results: Partial, query: jax.Array, key: jax.Array, pair_mask: Mask
            ) -> Partial:
                given = queries[query], block.keys[key], block.values[key], pair_mask
                part = self.kernel.forward(*given, scoring=scoring)
                out, lse = merge_partial((results[0][query], results[1][query]), part)
                return results[0].at[query].set(out), results[1].at[query].set(lse)

            return _for_pairs_that_meet(attend, results, block, mask), ()

        _, batch, length, num_heads, _ = queries.shape
        outs = varying_zeros((2, batch, length, num_heads, v_BSKH.shape[3]), q_BTNH, *home)
        lses = varying_zeros((2, batch, num_heads, length), q_BTNH, *home) + NOTHING_SEEN
        (outs, lses), _ = _visit_all(home, mask, visit, (outs, lses))
        return join_chunks(outs).astype(q_BTNH.dtype), join_chunks(lses, axis=2)

    def backward(
        self,
        q_BTNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        out_BTNH: jax.Array,
        lse_BNT: jax.Array,
        d_out_BTNH: jax.Array,
        mask: Mask,
        *,
        scoring: Scoring = PLAIN,
    ) -> Gradients:
        """Return the gradients of this device's queries, keys and values, and its part of a
        table's.

        Given the lse of the whole softmax, a kernel's backward pass over some of the keys yields
        their part of it.
        """
        queries, home = split_chunks(q_BTNH), _home(k_BSKH, v_BSKH, mask)
        outs, lses, d_outs = (
            split_chunks(out_BTNH),
            split_chunks(lse_BNT, axis=2),
            split_chunks(d_out_BTNH),
        )

        def visit(block: _Block, of_queries: Gradients) -> tuple[Gradients, Any]:
            def add(
                sums: Gradients, query: jax.Array, key: jax.Array, pair_mask: Mask
            ) -> Gradients:
                given = (
                    queries[query],
                    block.keys[key],
                    block.values[key],
                    outs[query],
                    lses[query],
                    d_outs[query],
                )
                d_q, d_k, d_v, *d_table = self.kernel.backward(*given, pair_mask, scoring=scoring)
                return (
                    sums[0].at[key].add(d_k),
                    sums[1].at[key].add(d_v),
                    sums[2].at[query].add(d_q),
                    *map(jnp.add, sums[3:], d_table),
                )

            d_keys, d_values = (
                varying_zeros(x.shape, q_BTNH, *home) for x in (block.keys, block.values)
            )
            sums = _for_pairs_that_meet(add, (d_keys, d_values, *of_queries), block, mask)
            return sums[2:], sums[:2]

        table = () if scoring.table_NX is None else (scoring.table_NX,)
        zeros = tuple(varying_zeros(x.shape, q_BTNH, *home, *table) for x in (queries, *table))
        (d_queries, *d_table), (d_keys, d_values) = _visit_all(home, mask, visit, zeros)
        d_q, d_k, d_v = map(join_chunks, (d_queries, d_keys, d_values))
        d_k, d_v = d_k.astype(k_BSKH.dtype), d_v.astype(v_BSKH.dtype)
        return d_q.astype(q_BTNH.dtype), d_k, d_v, *d_table


def _home(k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> _Block:
    return _Block(split_chunks(k_BSKH), split_chunks(v_BSKH), split_chunks(mask.keys, axis=2))


def _visit_all(home: _Block, mask: Mask, visit: _Visit, carry: Any) -> tuple[Any, Any]:
    """Work on this device's block, then on the others; return the carry and the gradients of this
    device's block.
    """
    carry, d_home = visit(home, carry)
    for direction, length in _journeys(mask.reach, home.seen_by.shape[3]):
        carry, d_home = _travel(home, d_home, visit, carry, direction=direction, length=length)
    return carry, d_home


def _travel(
    home: _Block, d_home: Any, visit: _Visit, carry: Any, *, direction: int, length: int
) -> tuple[Any, Any]:
    """Send every block to the `length` devices next to it, one after the other; its gradients go
    along and return.
    """

    def work(block: _Block, d_block: Any, carry: Any) -> tuple[Any, Any]:
        # The gradients of the block that is here arrive only now: they are on their way while it is
        # worked on.
        arriving = _send(d_block, direction)
        carry, added = visit(block, carry)
        return jax.tree.map(jnp.add, arriving, added), carry

    def step(_: jax.Array, state: tuple[_Block, Any, Any]) -> tuple[_Block, Any, Any]:
        block, d_block, carry = state
        following = _send(block, direction)
        return following, *work(block, d_block, carry)

    # Does not wait for the work on this device's own block, which does not touch it.
    state = (_send(home, direction), d_home, carry)
    block, d_block, carry = lax.fori_loop(1, length, step, state) if length > 1 else state
    d_block, carry = work(block, d_block, carry)
    return carry, _send(d_block, -direction * length)


def _journeys(reach: int | None, chunk: int) -> list[tuple[int, int]]:
    """Return (direction, length) of the ways on which a block meets every chunk that can see some
    of it.
    """
    others = lax.axis_size("context") - 1
    # The nearest key that is j chunks back lies (j - 1) chunk + 1 tokens back.
    hops = others if reach is None else -(-(reach - 1) // chunk)
    return [(1, others)] if 2 * hops >= others else [(1, hops), (-1, hops)] if hops else []


def _for_pairs_that_meet(work: Callable[..., Any], carry: Any, block: _Block, mask: Mask) -> Any:
    """Run carry = work(carry, query, key, mask) for each chunk of queries, 0 or 1, and of keys that
    it can see.
    """
    queries = split_chunks(mask.queries, axis=2)

    def step(carry: Any, pair: jax.Array) -> tuple[Any, None]:
        query, key = pair
        pair_mask = Mask.of(queries[query], block.seen_by[key], mask.reach)
        meet, _ = meetings(pair_mask, queries.shape[3], block.seen_by.shape[3])
        return lax.cond(
            meet.any(), work, lambda carry, *_: carry, carry, query, key, pair_mask
        ), None

    # No early queries with late keys if none sees what is after it: every late chunk is after every
    # early one. A loop, so that the program contains the kernel once.
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1)] if mask.reach is None else [(0, 0), (1, 0), (1, 1)]
    return lax.scan(step, carry, jnp.asarray(pairs, jnp.int32))[0]


def _send(tree: Any, hops: int) -> Any:
    """Permute arrays around the ring."""
    devices = lax.axis_size("context")
    ring = [(device, (device + hops) % devices) for device in range(devices)]
    return jax.tree.map(functools.partial(lax.ppermute, axis_name="context", perm=ring), tree)
