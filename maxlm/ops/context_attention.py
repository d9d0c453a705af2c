"""Attention to a sequence that is split over `context`: three ways, each made of a kernel for a whole sequence.

Collectives of one layer, with c devices along `context`:

* `ring`: see `maxlm.ops.ring_attention`; memory for 1 / c of the keys and values, whatever c is.
* `all_gather`: 3 all-gathers forward (keys, values, segment ids), 3 again backward, where nothing gathered is kept,
  and 2 reduce-scatters (their gradients, in fp32). Whole keys and values of one layer in memory; no waiting in turns.
* `ulysses` (arXiv:2309.14509): 4 all-to-alls forward (queries, keys, values, result), 4 backward, and 1 all-gather of
  segment ids. Each device attends to the whole sequence with 1 / c of its heads, of queries and of keys alike.
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
from maxlm.ops.attention import Gradients, Pair, Partial, attention
from maxlm.ops.ring_attention import RingAttention
from maxlm.sharding.context import (
    chunk_numbers,
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
) -> jax.Array:
    """Compute attention among all tokens of the sequence, of which each `context` device holds two chunks.

    Args:
      q_BTNH, k_BTKH, v_BTKH: of this device's tokens.
      mask: who sees whom; `q_start` and `kv_start` are 0, where the sequence starts.
      sink_N: score of attention to nothing, or None; see `attention`.
      kernel: attention to a sequence that one device holds.
      kind: `mesh.context_kind`.
    """
    if lax.axis_size("context") == 1:
        return attention(q_BTNH, k_BTKH, v_BTKH, mask, sink_N, kernel)
    return KINDS[kind](q_BTNH, k_BTKH, v_BTKH, mask, sink_N, kernel)


@dataclasses.dataclass(frozen=True)
class GatheredAttention:
    """An implementation that gathers all keys and values, and attends to them from each of this device's chunks."""

    kernel: Pair

    def forward(self, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> Partial:
        """Attend from this device's queries to the keys of all devices; return out and lse as a kernel does."""
        keys, values, everywhere = gather_sequence(k_BSKH), gather_sequence(v_BSKH), _gather_keys_of(mask)

        def attend(chunk: tuple[jax.Array, ...]) -> Partial:
            q, segments, start = chunk
            return self.kernel.forward(q, keys, values, _place(everywhere, segments, start))

        outs, lses = lax.map(attend, (split_chunks(q_BTNH), *_places(mask)))
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
    ) -> Gradients:
        """Return the gradients of this device's queries, keys and values."""
        keys, values, everywhere = gather_sequence(k_BSKH), gather_sequence(v_BSKH), _gather_keys_of(mask)

        def add(sums: tuple[jax.Array, jax.Array], chunk: Any) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            q, out, lse, d_out, segments, start = chunk
            d_q, d_k, d_v = self.kernel.backward(q, keys, values, out, lse, d_out, _place(everywhere, segments, start))
            return (sums[0] + d_k, sums[1] + d_v), d_q

        zeros = varying_zeros(keys.shape, q_BTNH, keys, values), varying_zeros(values.shape, q_BTNH, keys, values)
        chunks = split_chunks(q_BTNH), split_chunks(out_BTNH), split_chunks(lse_BNT, axis=2), split_chunks(d_out_BTNH)
        d_whole, d_queries = lax.scan(add, zeros, (*chunks, *_places(mask)))
        d_k, d_v = map(_scatter, d_whole)
        return join_chunks(d_queries), d_k.astype(k_BSKH.dtype), d_v.astype(v_BSKH.dtype)


def _ring(q, k, v, mask, sink_N, kernel):  # type: ignore[no-untyped-def]
    return attention(q, k, v, mask, sink_N, RingAttention(kernel))


def _all_gather(q, k, v, mask, sink_N, kernel):  # type: ignore[no-untyped-def]
    return attention(q, k, v, mask, sink_N, GatheredAttention(kernel))


def _ulysses(q, k, v, mask, sink_N, kernel):  # type: ignore[no-untyped-def]
    """Exchange sequence for heads, attend, and exchange back; autodiff turns the exchanges around."""
    q, k, v = (whole(x, axis=2) for x in (q, k, v))
    sink_N = None if sink_N is None else share(sink_N, axis=0)
    segments = gather_sequence(mask.kv_segments_BS)
    everywhere = dataclasses.replace(mask, q_segments_BT=segments, kv_segments_BS=segments)
    return parts(attention(q, k, v, everywhere, sink_N, kernel), axis=2)


KINDS: dict[str, Callable[..., jax.Array]] = {"ring": _ring, "all_gather": _all_gather, "ulysses": _ulysses}
"""What `mesh.context_kind` names."""


def _scatter(x_BS: jax.Array) -> jax.Array:
    """Sum a gradient of the whole sequence over devices, keep this device's tokens."""
    return lax.psum_scatter(zigzag_order(x_BS), "context", scatter_dimension=1, tiled=True)


def _gather_keys_of(mask: Mask) -> Mask:
    return dataclasses.replace(mask, kv_segments_BS=gather_sequence(mask.kv_segments_BS))


def _places(mask: Mask) -> tuple[jax.Array, jax.Array]:
    """Return the segment ids of this device's two chunks, and the indices in the sequence at which they start."""
    segments = split_chunks(mask.q_segments_BT)
    return segments, jnp.stack(chunk_numbers(lax.axis_index("context"))) * segments.shape[2]


def _place(mask: Mask, q_segments_BT: jax.Array, q_start: jax.Array) -> Mask:
    return dataclasses.replace(mask, q_segments_BT=q_segments_BT, q_start=q_start)
