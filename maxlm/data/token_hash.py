"""A running hash of the tokens a run has consumed, which does not depend on how hosts or devices
split the batch.

Every element (token, segment, row, column) is hashed to two 32-bit numbers and the batch's hash is
their sum modulo 2^32, so partial sums over any split add up. Batches are then chained, so that
their order counts. Only 32-bit integers are used: JAX has no others by default. Works on numpy and
on jax.numpy arrays, also while tracing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Odd 32-bit constants: the golden ratio (Weyl sequence), and the multipliers of MurmurHash3 and of
# "lowbias32".
_GOLDEN = np.uint32(0x9E3779B9)
_STREAMS = (np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35))
_MIX_1, _MIX_2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


def batch_hash(tokens: Any, segment_ids: Any, *, rows: Any, columns: Any) -> Any:
    """Return the uint32[2] hash of a part of a batch; the hashes of all parts add up modulo 2^32.

    Args:
      tokens, segment_ids: (B, T) integers, the part at hand.
      rows: (B,) row numbers of that part in the global batch.
      columns: (T,) column numbers of that part in the global sequence.
    """
    place = _mix(_unsigned(rows))[:, None] + _unsigned(columns)[None, :] * _GOLDEN
    key = _mix(place) ^ _unsigned(segment_ids) * _MIX_1
    lanes = [
        _mix((_mix(key + stream) ^ _unsigned(tokens)) * stream + _GOLDEN).sum(dtype="uint32")
        for stream in _STREAMS
    ]
    return lanes[0].__array_namespace__().stack(lanes)


def advance(running: Any, batch: Any) -> Any:
    """Return the running hash (uint32[2], zeros at first) after one more batch's hash; the order of
    batches counts.
    """
    running, batch = _unsigned(running), _unsigned(batch)
    mixed = _mix(running * _GOLDEN + batch + np.uint32(1))
    return _mix(mixed ^ mixed[::-1] * _STREAMS[0])


def hexdigest(running: Any) -> str:
    """Return a uint32[2] hash as 16 hexadecimal digits."""
    high, low = (int(lane) for lane in np.asarray(running))
    return f"{high:08x}{low:08x}"


def _unsigned(values: Any) -> Any:
    return values.astype("uint32")


def _mix(values: Any) -> Any:
    """Scatter the bits of 32-bit integers (a bijection: shift-xor and multiply, the "lowbias32"
    constants).
    """
    values = (values ^ (values >> np.uint32(16))) * _MIX_1
    values = (values ^ (values >> np.uint32(15))) * _MIX_2
    return values ^ (values >> np.uint32(16))
