"""What an attention kernel is asked for, in static numbers: enough to choose one, and its block
sizes.
"""

from __future__ import annotations

from typing import NamedTuple


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
      softcap: see `chunked_attention.forward`.
      sinks: whether the softmax has a key of value zero besides, see `maxlm.ops.attention`.
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
    causal: bool = True
    spread: bool = False
