"""How many queries and keys the blocks of an attention kernel have, per device."""

from __future__ import annotations

from typing import NamedTuple

from maxlm.devices import MIB, find_device
from maxlm.kernels.shape import AttentionShape

LANES = 128
LEAST_VECTOR_MEMORY = 16 * MIB
"""Of a TPU that is not in the table of devices."""

TPU_DEFAULT = ((512, 512), (512, 512))
"""(queries, keys) of a block, forward and backward, wherever `TPU_BLOCKS` says nothing else.

Nothing else was as much as 4 % cheaper on v5e and v5p, for head sizes 64, 128, 192 (128 of values)
and 256 in bf16, nor on any TPU in fp32. Larger blocks lose where documents are short: up to 25 % at
1,024 tokens on average.
"""
LONG = 32768
"""Queries from which on `TPU_BLOCKS` is asked: who trains on such sequences has long documents."""
TPU_BLOCKS = {
    ("TPU v6 lite", 64, "bfloat16"): ((1024, 1024), (1024, 1024)),
    ("TPU v6 lite", 128, "bfloat16"): ((1024, 1024), (1024, 1024)),
    ("TPU v6 lite", 192, "bfloat16"): ((1024, 1024), (1024, 1024)),
    ("TPU v6 lite", 256, "bfloat16"): ((1024, 1024), (1024, 1024)),
    ("TPU7x", 64, "bfloat16"): ((1024, 512), (1024, 1024)),
    ("TPU7x", 128, "bfloat16"): ((1024, 512), (1024, 1024)),
    ("TPU7x", 192, "bfloat16"): ((1024, 512), (1024, 1024)),
    ("TPU7x", 256, "bfloat16"): ((1024, 512), (1024, 1024)),
}
"""Blocks for long sequences, by device, larger head size and type; other head sizes take the next
larger one's.

Chosen by `scripts/tune_attention.py tpu --head-sizes 64 128 256 192/128` from the cycles of
schedules of one document of 32,768 tokens (2026-11-25, jax 0.10.2, libtpu 0.0.42).
"""


class BlockSizes(NamedTuple):
    """Tokens of a block.

    Attributes:
      q: queries, or rows where the heads of a group share a block.
      kv: keys of a block.
      stretch: keys that are in vector memory at a time, a whole number of blocks.
    """

    q: int
    kv: int
    stretch: int


class HopperBlocks(NamedTuple):
    """Tokens of a block that comes through a kernel's rings.

    Attributes:
      forward: keys.
      d_q: keys.
      d_kv: queries.
      apart: one warpgroup sums dv, the other dk.
      turns: in the forward pass the warpgroups take turns at the tensor cores.
    """

    forward: int
    d_q: int
    d_kv: int
    apart: bool
    turns: bool = True


def hopper(key_size: int, value_size: int) -> HopperBlocks:
    """Return the largest blocks for which 240 registers of a thread and 227 KiB of shared memory
    are enough.

    Of 64 rows a thread holds half the head size of each sum and half the block of each matrix of
    scores. For head size 128 these are 64 + 64 registers forward, 64 + 2 x 32 for dq (p and dp) and
    2 x 64 + 2 x 32 for dk and dv; of larger heads the sums of dk and dv need two warpgroups. Shared
    memory holds 128 rows and two blocks, forward and for head size 192: 48 KiB of queries and, for
    each token of a block, 1.5 KiB of keys and values.

    Turns make head size 64 8 % faster (4,096 tokens) and 128 3 % slower (16,384; H200, 2026-11-26);
    others were not timed without.
    """
    both = key_size + value_size
    forward = 128
    if both > 320 or key_size > 192 or value_size > 128:
        forward = 96 if both <= 384 and value_size <= 192 else 64
    d_q = 64 if both <= 384 and key_size <= 192 else 32
    return HopperBlocks(forward, d_q, 64, both > 256, turns=(key_size, value_size) != (128, 128))


def tpu_forward(shape: AttentionShape) -> BlockSizes:
    """Return the blocks of the forward kernel."""
    per_key = 2 * _bytes(shape) * (_lanes(shape.key_size) + _lanes(shape.value_size))
    return _fit(shape, _tpu_blocks(shape)[0], _budget(shape) // per_key)


def tpu_backward(shape: AttentionShape) -> BlockSizes:
    """Return the blocks of the backward kernel."""
    per_key = (4 + 4 * _bytes(shape)) * (_lanes(shape.key_size) + _lanes(shape.value_size))
    return _fit(shape, _tpu_blocks(shape)[1], _budget(shape) // per_key)


def vmem_limit(device_kind: str) -> int:
    """Return how many bytes of vector memory a kernel may take: all but what the compiler keeps for
    itself.
    """
    row = find_device(device_kind)
    return (row.chip.vector_memory if row and row.chip else LEAST_VECTOR_MEMORY) * 7 // 8


def _tpu_blocks(shape: AttentionShape) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the row of the table of the next larger head size."""
    size = max(shape.key_size, shape.value_size)
    sizes = [
        known
        for kind, known, dtype in TPU_BLOCKS
        if (kind, dtype) == (shape.device_kind, shape.dtype)
    ]
    larger = [known for known in sizes if known >= size]
    if shape.query_length < LONG or not larger:
        return TPU_DEFAULT
    return TPU_BLOCKS[shape.device_kind, min(larger), shape.dtype]


def _budget(shape: AttentionShape) -> int:
    """Return the bytes for keys, values and their gradients: half, the rest is for scores and
    queries.
    """
    return vmem_limit(shape.device_kind) // 2


def _bytes(shape: AttentionShape) -> int:
    return 4 if shape.dtype == "float32" else 2


def _lanes(size: int) -> int:
    return -(-size // LANES) * LANES


def _fit(shape: AttentionShape, blocks: tuple[int, int], max_stretch: int) -> BlockSizes:
    """Cut to what the sequence has: as many blocks and stretches as the sizes given need, but even
    ones.
    """
    q, kv = blocks
    kv = _even(shape.key_length, kv, LANES)
    stretch = _even(shape.key_length, max(max_stretch // kv, 1) * kv, kv)
    return BlockSizes(_even(shape.query_length, q, LANES), kv, stretch)


def _even(length: int, largest: int, unit: int) -> int:
    """Return the size, in whole units, of equal parts of a length, none larger than the largest."""
    return -(-length // (-(-length // largest) * unit)) * unit
