"""What layers know about the tokens besides their vectors."""

from __future__ import annotations

from typing import NamedTuple

import jax

from maxlm.ops.attention import Kernel


class SequenceInfo(NamedTuple):
    """Where each token stands; arrays of this device's part of the sequence, before `tensor` splits it.

    Attributes:
      positions_BT: int32, counted from 0 in every document.
      segment_ids_BT: int32, the document's number in its row, from 1; 0 for filling.
      rotation: cosines and sines (B, T, 1, H / 2) of the positions, or None without rotary positions.
      attention_kernel: attention to a sequence that one device holds.
      context_kind: how attention spans the devices of `context`, `mesh.context_kind`.
    """

    positions_BT: jax.Array
    segment_ids_BT: jax.Array
    rotation: tuple[jax.Array, jax.Array] | None
    attention_kernel: Kernel
    context_kind: str = "ring"
