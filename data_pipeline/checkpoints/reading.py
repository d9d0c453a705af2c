"""What a trained model makes of texts: their bits per byte, and what it holds of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from data_pipeline.checkpoints.loading import load_model, memory_named, tokenizer_of
from data_pipeline.checkpoints.packing import pack
from maxlm.config.pipeline.checkpoint import ScoringCheckpoint

Item = TypeVar("Item")
MOST_CHARACTERS = 32  # that are looked at for each token that is read


class Reader:
    """A model that reads the beginnings of texts.

    Attributes:
      width: numbers of a hidden state.
    """

    def __init__(self, section: ScoringCheckpoint):
        self._section, self._model = section, load_model(section)
        self._tokenizer = tokenizer_of(self._model, section)
        self.width = self._model.config.embed_dim
        self._size = {"rows": section.rows, "length": section.max_tokens + 1}

    def bits_per_byte(self, texts: Iterable[tuple[Item, str]]) -> Iterator[tuple[Item, float]]:
        """Yield items with -log2 of the probability of their text's first tokens, given those before
        them and BOS, over the bytes that these stand for; nan of an empty text.

        Args:
          texts: items and their texts.
        """
        for packed in pack(self._tokens(texts), **self._size):
            with memory_named():
                nats = self._model.nats(packed.tokens, packed.segments)
            for item, row, start, stop in packed.places:
                ids = packed.tokens[row, start:stop]
                num_bytes = int(self._tokenizer.bytes_of(ids[1:], ids[:-1]).sum())
                total = nats[row, start : stop - 1].sum(dtype=np.float64)
                yield item, float(total) / math.log(2) / num_bytes if num_bytes else math.nan

    def features(self, texts: Iterable[tuple[Item, str]]) -> Iterator[tuple[Item, np.ndarray]]:
        """Yield items with the mean of the last hidden states over BOS and their text's first tokens,
        divided by its length: float32 (D,).
        """
        for packed in pack(self._tokens(texts), **self._size):
            with memory_named():
                hidden = self._model.hidden(packed.tokens, packed.segments)
            for item, row, start, stop in packed.places:
                mean = hidden[row, start:stop].mean(axis=0, dtype=np.float64)
                yield item, (mean / max(np.linalg.norm(mean), 1e-30)).astype(np.float32)

    def _tokens(self, texts: Iterable[tuple[Item, str]]) -> Iterator[tuple[Item, list[int]]]:
        most = self._section.max_tokens
        for item, text in texts:
            ids = self._tokenizer.encode(text[: MOST_CHARACTERS * most])[:most]
            yield item, [self._tokenizer.bos_id, *ids]
