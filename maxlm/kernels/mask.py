"""Which query may see which key, in the few numbers that every attention kernel needs to skip blocks."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

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
