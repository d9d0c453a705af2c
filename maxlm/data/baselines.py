"""What a model must beat: bits per byte of validation text under models that need no training.

The token models predict what the trained one does: every token but BOS, EOS included, given the
tokens before it.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from maxlm.data.examples.packing import are_predicted
from maxlm.data.shards import TokenShards
from maxlm.data.tokenizers import Tokenizer

FIT_TOKENS = 20_000_000  # training tokens that are counted, at most
PORTION = 2**21  # tokens that are counted at a time: numbers of pairs take many times their memory
SMOOTHING = (0.5, 2.0, 8.0, 32.0, 128.0, 512.0)  # strengths tried for the bigram model


class Baselines(NamedTuple):
    """Bits per byte by the model's name, and how many tokens were predicted."""

    targets: int
    bits_per_byte: dict[str, float]


def measure_baselines(
    train: TokenShards,
    validation: TokenShards,
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
) -> Baselines:
    """Measure four models on the validation tokens, or on the first `max_tokens` of them.

    * uniform: each of V tokens equally likely.
    * unigram: p(b) = (n_b + 1) / (n + V), counted on the training tokens.
    * bigram: p(b|a) = (n_ab + k p(b)) / (n_a + k), Dirichlet smoothing towards the unigram; of a
      few k the one that is best on the validation text itself, so the bar is not set too low.
    * gzip -9: the text of these tokens compressed as one file.

    Raises:
      UserError: a shard is damaged.
    """
    vocab_size, ends = train.index.vocab_size, (train.index.bos_id, train.index.eos_id)
    fitted = train.read(0, min(train.num_tokens, FIT_TOKENS))
    measured = validation.read(0, min(validation.num_tokens, max_tokens or validation.num_tokens))
    counts = np.zeros(vocab_size, np.int64)
    for part in _portions(fitted.size):
        tokens = fitted[part]
        counts += np.bincount(tokens[are_predicted(tokens, *ends)], minlength=vocab_size)
    unigram = (counts + 1) / (counts.sum() + vocab_size)
    predicted = are_predicted(measured[1:], *ends)
    learned = predicted & ~validation.read_masked(0, measured.size)[1:]
    targets = measured[1:][learned]
    fit = _count_pairs(fitted, vocab_size, are_predicted(fitted[1:], *ends))
    bits = {
        "uniform": targets.size * np.log2(vocab_size),
        "unigram": -np.log2(unigram[targets]).sum(),
        "bigram": _bigram_bits(fit, measured, learned, unigram),
    }
    text = gzip.compress(_text(measured, tokenizer).encode(), 9, mtime=0)
    bytes_of = tokenizer.bytes_of(measured[1:], measured[:-1])
    num_bytes = {"targets": int(bytes_of[learned].sum(dtype=np.int64))}
    num_bytes["text"] = int(bytes_of[predicted].sum(dtype=np.int64))
    per_byte = {name: float(value) / max(num_bytes["targets"], 1) for name, value in bits.items()}
    per_byte["gzip -9"] = 8.0 * len(text) / max(num_bytes["text"], 1)  # of masked text, too
    return Baselines(targets.size, {name: round(value, 4) for name, value in per_byte.items()})


def _text(tokens: np.ndarray, tokenizer: Tokenizer) -> str:
    starts = np.flatnonzero(tokens == tokenizer.bos_id)
    return "".join(tokenizer.decode(document) for document in np.split(tokens, starts))


def _portions(count: int) -> Iterator[slice]:
    """Yield slices of up to `PORTION` places."""
    return (slice(start, min(start + PORTION, count)) for start in range(0, count, PORTION))


def _count_pairs(
    tokens: np.ndarray, vocab_size: int, are_targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the different (context, target) pairs, ascending, and how often each comes."""
    pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for part in _portions(are_targets.size):
        found = _pairs(tokens[part.start : part.stop + 1], vocab_size, are_targets[part])
        new, times = np.unique(found, return_counts=True)
        pairs, place = np.unique(np.concatenate([pairs, new]), return_inverse=True)
        times = np.concatenate([counts, times])
        counts = np.bincount(place, weights=times, minlength=pairs.size).astype(np.int64)
    return pairs, counts


def _bigram_bits(
    fitted: tuple[np.ndarray, np.ndarray],
    tokens: np.ndarray,
    are_targets: np.ndarray,
    unigram: np.ndarray,
) -> float:
    """Return the bits of the pairs of tokens under a model of other pairs."""
    vocab_size, (pairs, pair_counts) = unigram.size, fitted
    context_counts = np.bincount(pairs // vocab_size, weights=pair_counts, minlength=vocab_size)
    bits = np.zeros(len(SMOOTHING))
    for part in _portions(are_targets.size):
        wanted = _pairs(tokens[part.start : part.stop + 1], vocab_size, are_targets[part])
        place = np.minimum(np.searchsorted(pairs, wanted), pairs.size - 1)
        seen = np.where(pairs[place] == wanted, pair_counts[place], 0)
        contexts, prior = context_counts[wanted // vocab_size], unigram[wanted % vocab_size]
        bits -= [np.log2((seen + k * prior) / (contexts + k)).sum() for k in SMOOTHING]
    return float(bits.min())


def _pairs(tokens: np.ndarray, vocab_size: int, are_targets: np.ndarray) -> np.ndarray:
    """Return (context, target) pairs as single numbers; no target starts a document alone, so none
    crosses documents.
    """
    contexts, targets = tokens[:-1].astype(np.int64), tokens[1:]
    return (contexts * vocab_size + targets)[are_targets]
