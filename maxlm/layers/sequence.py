"""What layers know about the tokens besides their vectors."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
from jax import lax

from maxlm.jax_versions import vary_over
from maxlm.kernels.mask import Mask, in_chunks, windowed
from maxlm.sharding import tensor


class SequenceInfo(NamedTuple):
    """Where each token stands; arrays of this device's part of the sequence, before `tensor` splits
    it.

    Attributes:
      positions_BT: int32, counted from 0 in every document.
      segment_ids_BT: int32, the document's number in its row, from 1; 0 for filling.
      mask: which tokens of the sequence each token may look at.
      length: tokens of a whole sequence: of all devices, and where tokens are decoded of the ones
        to come too. Positions that are scaled for long sequences depend on it, not on how long the
        documents in it are.
      kernels: the implementation that each operation's table chose, by operation.
      context_kind: how attention spans the devices of `context`, `mesh.context_kind`.
      split: whether `tensor` splits the sequence between blocks; not where a few tokens are
        decoded.
      prepared: what layers asked to be worked out once for all of them (`Layer.prepare`).
    """

    positions_BT: jax.Array
    segment_ids_BT: jax.Array
    mask: Mask
    length: int
    kernels: Mapping[str, Any]
    context_kind: str = "ring"
    split: bool = True
    prepared: Mapping[Hashable, Any] = {}

    def within(self, window: int | None = None, chunk: int | None = None) -> Mask:
        """Return the mask without what lies `window` or more ranks before a token, or in another
        chunk of `chunk` tokens of its document.
        """
        mask = self.mask
        if window is not None:
            mask = windowed(mask, mask.q_rank_BT, window)
        return mask if chunk is None else in_chunks(mask, self.positions_BT, chunk)

    @property
    def real_BT(self) -> jax.Array:
        """Which tokens are more than filling, where `tensor` splits the sequence between blocks."""
        return (
            tensor.sequence_part(self.segment_ids_BT) if self.split else self.segment_ids_BT
        ) > 0

    @property
    def permutes(self) -> bool:
        """Whether layers permute over `context`; see `maxlm.sharding.pipeline.on_some_stages`."""
        return self.context_kind == "ring" and lax.axis_size("context") > 1

    def enter(self, x_BTD: jax.Array) -> jax.Array:
        """Give every `tensor` device the whole sequence: (B, T / tensor, D) -> (B, T, D)."""
        return tensor.enter(x_BTD) if self.split else x_BTD

    def leave(self, x_BTD: jax.Array) -> jax.Array:
        """Sum what `tensor` devices made of the whole sequence: (B, T, D) -> (B, T / tensor, D)."""
        # The same on all devices, but what is added to it later may not be known to be.
        return (
            tensor.leave(x_BTD) if self.split else vary_over(lax.psum(x_BTD, "tensor"), ("tensor",))
        )
