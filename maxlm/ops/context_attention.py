"""Attention to a sequence that is split over `context`: three ways, each made of a kernel for a
whole sequence.

Collectives of one layer, with c devices along `context`:

* `ring`: see `maxlm.ops.ring_attention`; memory for 1 / c of the keys and values, whatever c is.
* `all_gather`: 3 all-gathers forward (keys, values, what the mask says of keys), 3 again backward,
  where nothing gathered is kept, and 2 reduce-scatters (their gradients, in fp32). Whole keys and
  values of one layer in memory; no waiting in turns.
* `ulysses` (arXiv:2309.14509): 4 all-to-alls forward (queries, keys, values, result), 4 backward,
  and 1 all-gather of the mask. Each device attends to the whole sequence with 1 / c of its heads,
  of queries and of keys alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.jax_versions import varying_zeros
from maxlm.kernels.mask import Mask
from maxlm.kernels.shape import PLAIN, Scoring
from maxlm.ops.attention import Gradients, Pair, Partial, attention
from maxlm.ops.linear import computed_once
from maxlm.ops.ring_attention import RingAttention
from maxlm.sharding.context import (
    gather_sequence,
    join_chunks,
    parts,
    share,
    split_chunks,
    whole,
    zigzag_order,
)


def context_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    sink_N: jax.Array | None,
    *,
    kernel: Pair,
    kind: str,
    scoring: Scoring = PLAIN,
) -> jax.Array:
    """Compute attention among all tokens of the sequence, of which each `context` device holds two
    chunks.

    Args:
      q_BTNH, k_BTKH, v_BTKH: of this device's tokens.
      mask: who sees whom, of this device's tokens; ranks are those of the whole sequence.
      sink_N: score of attention to nothing, or None; see `attention`.
      kernel: attention to a sequence that one device holds.
      kind: `mesh.context_kind`.
      scoring: how scores are made.
    """
    attend = attention if lax.axis_size("context") == 1 else KINDS[kind]
    # The backward pass multiplies the result with its gradient, and sums: not at the end of the
    # product that makes the gradient.
    return computed_once(attend(q_BTNH, k_BTKH, v_BTKH, mask, sink_N, kernel, scoring))


@dataclasses.dataclass(frozen=True)
class GatheredAttention:
    """An implementation that gathers all keys and values, and attends to them from each of this
    device's chunks.
    """

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
        keys, values, seen_by = (
            gather_sequence(k_BSKH),
            gather_sequence(v_BSKH),
            _gather_tokens(mask.keys),
        )

        def attend(chunk: tuple[jax.Array, ...]) -> Partial:
            q, q_mask = chunk
            here = Mask.of(q_mask, seen_by, mask.reach)
            return self.kernel.forward(q, keys, values, here, scoring=scoring)

        outs, lses = lax.map(attend, (split_chunks(q_BTNH), split_chunks(mask.queries, axis=2)))
        return join_chunks(outs), join_chunks(lses, axis=2)

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
        """
        keys, values, seen_by = (
            gather_sequence(k_BSKH),
            gather_sequence(v_BSKH),
            _gather_tokens(mask.keys),
        )

        def add(sums: Gradients, chunk: Any) -> tuple[Gradients, jax.Array]:
            q, out, lse, d_out, q_mask = chunk
            here = Mask.of(q_mask, seen_by, mask.reach)
            d_q, *others = self.kernel.backward(
                q, keys, values, out, lse, d_out, here, scoring=scoring
            )
            return tuple(map(jnp.add, sums, others)), d_q

        table = () if scoring.table_NX is None else (scoring.table_NX,)
        zeros = tuple(
            varying_zeros(x.shape, q_BTNH, keys, values, *table) for x in (keys, values, *table)
        )
        chunks = (
            split_chunks(q_BTNH),
            split_chunks(out_BTNH),
            split_chunks(lse_BNT, axis=2),
            split_chunks(d_out_BTNH),
        )
        (d_keys, d_values, *d_table), d_queries = lax.scan(
            add, zeros, (*chunks, split_chunks(mask.queries, axis=2))
        )
        d_k, d_v = map(_scatter, (d_keys, d_values))
        d_k, d_v = d_k.astype(k_BSKH.dtype), d_v.astype(v_BSKH.dtype)
        return join_chunks(d_queries), d_k, d_v, *d_table


def _ring(q, k, v, mask, sink_N, kernel, scoring):  # type: ignore[no-untyped-def]
    return attention(q, k, v, mask, sink_N, RingAttention(kernel), scoring)


def _all_gather(q, k, v, mask, sink_N, kernel, scoring):  # type: ignore[no-untyped-def]
    return attention(q, k, v, mask, sink_N, GatheredAttention(kernel), scoring)


def _ulysses(q, k, v, mask, sink_N, kernel, scoring):  # type: ignore[no-untyped-def]
    """Exchange sequence for heads, attend, and exchange back; autodiff turns the exchanges around."""
    q, k, v = (whole(x, axis=2) for x in (q, k, v))
    # What is per head: of this device's heads alone.
    sink_N, scoring = jax.tree.map(lambda x: share(x, axis=0), (sink_N, scoring))
    arrays = _gather_tokens(jnp.concatenate([mask.queries, mask.keys], axis=1))
    queries, keys = jnp.split(arrays, [mask.queries.shape[1]], axis=1)
    everywhere = Mask.of(queries, keys, mask.reach)
    return parts(attention(q, k, v, everywhere, sink_N, kernel, scoring), axis=2)


KINDS: dict[str, Callable[..., jax.Array]] = {
    "ring": _ring,
    "all_gather": _all_gather,
    "ulysses": _ulysses,
}
"""What `mesh.context_kind` names."""


def _scatter(x_BS: jax.Array) -> jax.Array:
    """Sum a gradient of the whole sequence over devices, keep this device's tokens."""
    return lax.psum_scatter(zigzag_order(x_BS), "context", scatter_dimension=1, tiled=True)


def _gather_tokens(x_BXS: jax.Array) -> jax.Array:
    """Gather numbers of tokens, (B, X, S), in the order of the sequence."""
    return gather_sequence(x_BXS.mT).mT
