"""Windows of the token stream as inputs and, one token later, targets; and tokens after those, for
modules that predict further ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from maxlm.data.examples.further import further, further_fields
from maxlm.data.examples.packing import NO_TOKEN, are_predicted, segments_and_positions
from maxlm.data.tokenizers import Tokenizer


class NextTokenExamples:
    """Every token predicts the one after it, unless that starts another document; at depth k that
    which is k places further, unless another document starts on the way.
    """

    fields = {
        "tokens": np.dtype(np.int32),
        "segment_ids": np.dtype(np.int32),
        "positions": np.dtype(np.int32),
        "targets": np.dtype(np.int32),
        "target_bytes": np.dtype(np.int32),
        "weights": np.dtype(np.float32),
    }
    tokens_after = 1

    def __init__(self, config: Any, tokenizer: Tokenizer, *, seed: int, depth: int = 0):
        del config, seed
        self._tokenizer, self._depth = tokenizer, depth
        if depth:
            self.fields = {**self.fields, **further_fields(depth)}
            self.tokens_after = 1 + depth

    def __call__(
        self, windows: np.ndarray, rows: range, masked: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Return the fields of a batch, each (B, T), from windows of T + 1 + depth tokens.

        Args:
          windows: int32 (B, T + 1 + depth); `NO_TOKEN` where there is none.
          rows: the numbers of the windows in the training data.
          masked: bool, shaped like `windows`: tokens that are read and not learned.

        Returns:
          `segment_ids` (0 where there is no token) and `positions` of the `tokens`; their
          `targets`, the UTF-8 bytes that each target stands for, and `weights`: 1 where the target
          continues or ends the token's document and is not masked, else 0. Likewise `targets_k` and `weights_k` of
          every depth k: `targets_k` of a token are k places behind its `targets`.
        """
        del rows
        bos_id, eos_id = self._tokenizer.bos_id, self._tokenizer.eos_id
        there, length = windows != NO_TOKEN, windows.shape[1] - self.tokens_after
        windows = np.where(windows == NO_TOKEN, np.int32(eos_id), windows)
        predicted = there & are_predicted(windows, bos_id, eos_id)
        if masked is not None:
            predicted &= ~masked
        tokens, targets = windows[:, :length], windows[:, 1 : 1 + length]
        segment_ids, positions = segments_and_positions(tokens, bos_id)
        segment_ids = segment_ids * there[:, :length]
        learned = predicted[:, 1 : 1 + length]
        more, on_the_way = dict[str, np.ndarray](), np.ones_like(learned)
        for depth in range(1, self._depth + 1):
            behind = slice(1 + depth, 1 + depth + length)
            on_the_way = on_the_way & (windows[:, depth : depth + length] != bos_id)
            more[further("targets", depth)] = np.ascontiguousarray(windows[:, behind])
            more[further("weights", depth)] = (on_the_way & predicted[:, behind]).astype(np.float32)
        return {
            "tokens": np.ascontiguousarray(tokens),
            "targets": np.ascontiguousarray(targets),
            "segment_ids": segment_ids,
            "positions": positions,
            "target_bytes": self._tokenizer.bytes_of(targets, tokens) * learned,
            "weights": learned.astype(np.float32),
            **more,
        }
