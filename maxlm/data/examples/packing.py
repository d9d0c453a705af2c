"""Where documents lie in a window of tokens.

Documents are stored back to back as BOS ... EOS, so a window needs no other index: a document
starts where BOS is. Where BOS and EOS are one token, it stands once between documents: it ends the
one and starts the other.
"""

from __future__ import annotations

import numpy as np

NO_TOKEN = -1  # fills windows past the end of a validation stream
_MASKED = np.int32(-(2**31))  # the sign; tokens are far below 2^31 - 1, so NO_TOKEN is none of them


def mark_masked(tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """Return int32 tokens of which those that are not learned have their sign."""
    return np.where(masked, tokens | _MASKED, tokens)


def split_masked(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens as they were before `mark_masked`, and which of them are not learned."""
    masked = (windows < 0) & (windows != NO_TOKEN)
    return np.where(masked, windows & ~_MASKED, windows), masked


def segments_and_positions(tokens: np.ndarray, bos_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int32 (B, T): each token's document, from 1 in each row, and its place in it.

    Places count from 0 at each document's start and at the row's start: the rest of an earlier
    document is a segment of its own.
    """
    starts = tokens == bos_id
    starts[:, 0] = True
    columns = np.arange(tokens.shape[1], dtype=np.int32)
    last_start = np.maximum.accumulate(np.where(starts, columns, np.int32(0)), axis=1)
    return np.cumsum(starts, axis=1, dtype=np.int32), columns - last_start


def are_predicted(targets: np.ndarray, bos_id: int, eos_id: int) -> np.ndarray:
    """Return which tokens are predicted from those before them: all but BOS, unless it is EOS too."""
    everywhere = bos_id == eos_id
    return (targets != bos_id) | everywhere
