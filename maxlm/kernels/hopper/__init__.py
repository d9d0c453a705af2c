"""Flash attention for Hopper GPUs (H100, H200): Pallas kernels for Mosaic GPU.

FlashAttention-3 (arXiv:2407.08608). A thread block is one warpgroup that brings blocks from memory
(TMA) into rings of buffers, and two that compute (wgmma), each with its own 64 queries (forward,
dq) or keys (dk and dv, all query heads of the group one after the other: nothing is repeated in
memory, no atomics, two runs give the same bits). In the forward pass each computes exponentials of
a block while the tensor cores multiply the weights of the block before, and where that is faster
the two take turns at the tensor cores. Where the sums of dk and dv are too large for
one, both have the same keys: one computes p and sums dv, the other takes p and sums dk.

Blocks that nobody sees are not visited, blocks in which every pair is visible need no mask
(`mask.block_ranges`). Lengths need not fit: TMA reads zeros beyond the end, which no query sees,
and writes nothing there.
"""

from maxlm.kernels.hopper.pair import backward, forward, unsupported

__all__ = ["backward", "forward", "unsupported"]
