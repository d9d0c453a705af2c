"""Windows of the token stream as inputs and, one token later, targets."""

from __future__ import annotations

from typing import Any

import numpy as np

from maxlm.data.examples.packing import NO_TOKEN, are_predicted, segments_and_positions
from maxlm.data.tokenizers import Tokenizer


class NextTokenExamples:
    """Every token predicts the one after it, unless that starts another document."""

    fields = {
        "tokens": np.dtype(np.int32),
        "segment_ids": np.dtype(np.int32),
        "positions": np.dtype(np.int32),
        "targets": np.dtype(np.int32),
        "target_bytes": np.dtype(np.int32),
        "weights": np.dtype(np.float32),
    }
    tokens_after = 1

    def __init__(self, config: Any, tokenizer: Tokenizer, *, seed: int):
        del config, seed
        self._tokenizer = tokenizer

    def __call__(self, windows: np.ndarray, rows: range) -> dict[str, np.ndarray]:
        """Return the fields of a batch, each (B, T), from windows of T + 1 tokens.

        Args:
          windows: int32 (B, T + 1); `NO_TOKEN` where there is none.
          rows: the numbers of the windows in the training data.

        Returns:
          `segment_ids` (0 where there is no token) and `positions` of the `tokens`; their
          `targets`, the UTF-8 bytes that each target stands for, and `weights`: 1 where the target
          continues or ends the token's document, else 0.
        """
        del rows
        bos_id, eos_id = self._tokenizer.bos_id, self._tokenizer.eos_id
        there = windows != NO_TOKEN
        windows = np.where(windows == NO_TOKEN, np.int32(eos_id), windows)
        tokens, targets = windows[:, :-1], windows[:, 1:]
        segment_ids, positions = segments_and_positions(tokens, bos_id)
        segment_ids = segment_ids * there[:, :-1]
        learned = there[:, 1:] & are_predicted(targets, bos_id, eos_id)
        return {
            "tokens": np.ascontiguousarray(tokens),
            "targets": np.ascontiguousarray(targets),
            "segment_ids": segment_ids,
            "positions": positions,
            "target_bytes": self._tokenizer.bytes_of(targets, tokens) * learned,
            "weights": learned.astype(np.float32),
        }
