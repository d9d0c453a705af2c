"""Windows of the token stream to the fields of a batch: segments, positions, weights.

Documents are stored back to back as BOS ... EOS, so a window needs no other index: a document starts where BOS is.
"""

from __future__ import annotations

import numpy as np

NO_TOKEN = -1  # fills windows past the end of a validation stream


def pack(windows: np.ndarray, *, bos_id: int, eos_id: int, token_bytes: np.ndarray) -> dict[str, np.ndarray]:
    """Return the fields of a batch, each (B, T), from windows of T+1 tokens.

    Args:
      windows: int32 (B, T+1); `NO_TOKEN` where there is none.
      token_bytes: int32 (V,), UTF-8 bytes each token stands for.

    Returns:
      int32 `tokens`, `targets`, `segment_ids` (from 1 in each row), `positions` (from 0 at each document and at the
      row's start), `target_bytes`, and float32 `weights`: 1 where the target continues the input's document, else 0.
    """
    exists = windows[:, 1:] != NO_TOKEN
    windows = np.where(windows == NO_TOKEN, np.int32(eos_id), windows)
    tokens, targets = windows[:, :-1], windows[:, 1:]
    starts = tokens == bos_id
    starts[:, 0] = True  # the rest of an earlier document is a segment of its own
    columns = np.arange(tokens.shape[1], dtype=np.int32)
    last_start = np.maximum.accumulate(np.where(starts, columns, np.int32(0)), axis=1)
    learned = exists & (targets != bos_id)
    return {
        "tokens": np.ascontiguousarray(tokens),
        "targets": np.ascontiguousarray(targets),
        "segment_ids": np.cumsum(starts, axis=1, dtype=np.int32),
        "positions": columns - last_start,
        "target_bytes": token_bytes[targets] * learned,
        "weights": learned.astype(np.float32),
    }
