"""What an attention kernel is asked for besides tokens: how scores are made, and the static numbers
that choose a kernel and its block sizes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal, NamedTuple

import jax


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("slopes_N", "table_NX"),
    meta_fields=("scale", "softcap", "edges"),
)
@dataclasses.dataclass(frozen=True)
class Scoring:
    """How scores are made of the product q k^T of a query and a key, and the distance between them.

    The distance is the query's rank less the key's `from` (`maxlm.kernels.mask`): under a causal
    mask the tokens from the key to the query. With softcap c, scale q k^T becomes c tanh(scale q
    k^T / c) (arXiv:2408.00118). Slopes and a table come without a softcap.

    Attributes:
      scale: None for 1 / sqrt(H).
      softcap: None leaves scores as they are.
      slopes_N: fp32, head n's scores fall by slopes[n] a token of distance (arXiv:2108.12409).
        Constants: they get no gradient.
      table_NX: fp32, head n's scores get table[n, x] more at distances of bucket x
        (arXiv:1910.10683).
      edges: distances at which buckets 1, 2 ... start, ascending; bucket 0 is what lies below.
    """

    scale: float | None = None
    softcap: float | None = None
    slopes_N: jax.Array | None = None
    table_NX: jax.Array | None = None
    edges: tuple[int, ...] = ()

    def scale_of(self, head_size: int) -> float:
        """Return what products of queries and keys are multiplied with."""
        return 1 / math.sqrt(head_size) if self.scale is None else self.scale

    @property
    def by_distance(self) -> Literal["slopes", "table"] | None:
        """Return what is added to scores."""
        if self.table_NX is not None:
            return "table"
        return None if self.slopes_N is None else "slopes"


DISTANCE_SETTINGS = {"slopes": "position.kind=alibi", "table": "position.kind=relative"}
"""What makes layers ask for `Scoring.by_distance`."""
PLAIN = Scoring()
"""softmax(q k^T / sqrt(H))."""


class AttentionShape(NamedTuple):
    """One attention layer on one device.

    Attributes:
      device_kind: as `jax.Device.device_kind` says it, for example "TPU v5" or "NVIDIA H100 80GB
        HBM3".
      dtype: of queries, keys and values: "bfloat16" or "float32".
      num_heads: N, query heads on the device.
      num_kv_heads: K, heads of keys and values; N is a multiple of it.
      key_size: H, head size of queries and keys.
      value_size: H_v, head size of values.
      query_length: T, tokens with a query.
      key_length: S, tokens with a key.
      softcap: see `Scoring`.
      sinks: whether the softmax has a key of value zero besides, see `maxlm.ops.attention`.
      by_distance: `Scoring.by_distance`.
      causal: whether the mask is one of `mask.causal`, of whole sequences in their order; others
        are known at run time alone.
      spread: whether devices of `context` hold other parts of the same softmax: queries and keys
        start anywhere.
    """

    device_kind: str
    dtype: str
    num_heads: int
    num_kv_heads: int
    key_size: int
    value_size: int
    query_length: int
    key_length: int
    softcap: float | None = None
    sinks: bool = False
    by_distance: Literal["slopes", "table"] | None = None
    causal: bool = True
    spread: bool = False
