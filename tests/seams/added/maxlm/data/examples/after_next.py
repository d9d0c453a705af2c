"""Windows of the token stream as inputs and, two tokens later, targets."""

from __future__ import annotations

from typing import Any

import numpy as np

from maxlm.data.examples.next_token import NextTokenExamples
from maxlm.data.examples.packing import NO_TOKEN, segments_and_positions
from maxlm.data.tokenizers import Tokenizer


class AfterNextExamples:
    """Every token predicts the one after the next, unless another document starts before or there."""

    fields = NextTokenExamples.fields
    tokens_after = 2

    def __init__(self, config: Any, tokenizer: Tokenizer, *, seed: int):
        del seed
        self._ignored, self._tokenizer = config.ignored, tokenizer

    def __call__(
        self, windows: np.ndarray, rows: range, masked: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Return the fields of a batch, each (B, T), from windows of T + 2 tokens."""
        del rows
        bos_id = self._tokenizer.bos_id
        ends = (windows == NO_TOKEN) | (windows == bos_id)
        windows = np.where(windows == NO_TOKEN, np.int32(self._tokenizer.eos_id), windows)
        tokens, targets = windows[:, :-2], windows[:, 2:]
        segment_ids, positions = segments_and_positions(tokens, bos_id)
        learned = ~ends[:, 1:-1] & ~ends[:, 2:] & (positions >= self._ignored)
        if masked is not None:
            learned &= ~masked[:, 2:]
        return {
            "tokens": np.ascontiguousarray(tokens),
            "targets": np.ascontiguousarray(targets),
            "segment_ids": segment_ids,
            "positions": positions,
            "target_bytes": self._tokenizer.bytes_of(targets, windows[:, 1:-1]) * learned,
            "weights": learned.astype(np.float32),
        }
