"""What a model must beat: bits per byte of the validation text under models that need no training.

The token models predict what the trained one does: every token but BOS, EOS included, given the tokens before it.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence

import numpy as np

from data_pipeline.documents import Document
from maxlm.data.shards import TokenShards

FIT_TOKENS = 20_000_000  # training tokens that are counted, at most
SMOOTHING = (0.5, 2.0, 8.0, 32.0, 128.0, 512.0)  # strengths tried for the bigram model


def measure_baselines(train: TokenShards, validation: TokenShards, texts: Sequence[Document]) -> dict[str, float]:
    """Return bits per byte of the validation documents `texts` under four models.

    * uniform: each of V tokens equally likely.
    * unigram: p(b) = (n_b + 1) / (n + V), counted on the training tokens.
    * bigram: p(b|a) = (n_ab + k p(b)) / (n_a + k), Dirichlet smoothing towards the unigram; of a few k the one that is
      best on the validation text itself, so the bar is not set too low.
    * gzip -9: all validation documents compressed as one file.
    """
    text = "".join(document.text for document in texts).encode()
    vocab_size, bos_id = train.index.vocab_size, train.index.bos_id
    fitted = train.read(0, min(train.num_tokens, FIT_TOKENS))
    measured = validation.read(0, validation.num_tokens)
    counts = np.bincount(fitted[fitted != bos_id], minlength=vocab_size)
    unigram = (counts + 1) / (counts.sum() + vocab_size)
    targets = measured[measured != bos_id]
    bits = {
        "uniform": targets.size * np.log2(vocab_size),
        "unigram": -np.log2(unigram[targets]).sum(),
        "bigram": _bigram_bits(fitted, measured, unigram, bos_id),
        "gzip -9": 8.0 * len(gzip.compress(text, 9, mtime=0)),
    }
    return {name: round(float(value) / len(text), 4) for name, value in bits.items()}


def _bigram_bits(fitted: np.ndarray, measured: np.ndarray, unigram: np.ndarray, bos_id: int) -> float:
    vocab_size = unigram.size
    pairs, pair_counts = np.unique(_pairs(fitted, vocab_size, bos_id), return_counts=True)
    context_counts = np.bincount(pairs // vocab_size, weights=pair_counts, minlength=vocab_size)
    wanted = _pairs(measured, vocab_size, bos_id)
    place = np.minimum(np.searchsorted(pairs, wanted), pairs.size - 1)
    seen = np.where(pairs[place] == wanted, pair_counts[place], 0)
    contexts, prior = context_counts[wanted // vocab_size], unigram[wanted % vocab_size]
    return min(float(-np.log2((seen + k * prior) / (contexts + k)).sum()) for k in SMOOTHING)


def _pairs(tokens: np.ndarray, vocab_size: int, bos_id: int) -> np.ndarray:
    """Return (context, target) pairs as single numbers; no pair ends in BOS, so none crosses documents."""
    contexts, targets = tokens[:-1].astype(np.int64), tokens[1:]
    return (contexts * vocab_size + targets)[targets != bos_id]
