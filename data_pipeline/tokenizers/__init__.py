"""Train tokenizers on a sample of the training texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from data_pipeline.tokenizers.hf_json import train_byte_bpe, train_wordpiece
from data_pipeline.tokenizers.sample import take_sample
from data_pipeline.tokenizers.sentencepiece import train_sentencepiece
from maxlm.config.pipeline.tokenizer import TrainedTokenizerSection

TRAINERS: dict[str, Callable[[Any, Iterable[str], int], dict[str, bytes]]] = {
    "bpe": train_sentencepiece,
    "unigram": train_sentencepiece,
    "byte_bpe": train_byte_bpe,
    "wordpiece": train_wordpiece,
}


def train_tokenizer(
    config: TrainedTokenizerSection,
    sources: Mapping[str, Iterable[str]],
    weights: Mapping[str, float],
    vocab_size: int,
) -> dict[str, bytes]:
    """Return the files of a tokenizer with at most `vocab_size` pieces, by their names in a folder.

    Same texts in the same order: same bytes.

    Args:
      config: its kind.
      sources: texts of each source in a random order; of each those at the start are learned from,
        shared out by `weights`.
      weights: of each source.
      vocab_size: pieces, at most.

    Raises:
      UserError: the vocabulary is too small for what it must hold.
    """
    return TRAINERS[config.kind](
        config, take_sample(sources, weights, config.sample_mb), vocab_size
    )
