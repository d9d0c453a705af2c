"""Sort documents into head, middle and tail by how well an n-gram model predicts them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from data_pipeline.documents import Document, Dropped
from data_pipeline.ngrams.arpa import is_arpa, read_arpa
from data_pipeline.ngrams.model import NgramModel
from data_pipeline.ngrams.storage import load_ngrams
from maxlm.config.errors import UserError
from maxlm.config.pipeline.filters.perplexity import PerplexityConfig


class Perplexity:
    """Drops documents of other buckets, as `perplexity/tail`; a text without words is in the tail."""

    def __init__(self, config: PerplexityConfig):
        self._config = config

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield each document with its perplexity and bucket, or dropped."""
        for document in documents:
            found = round(self._model.perplexity(document.text), 2)
            head, middle = self._bounds
            bucket = "head" if found <= head else "middle" if found <= middle else "tail"
            if bucket not in self._config.keep:
                yield Dropped(document, f"perplexity/{bucket}", f"{found:.2f}")
            elif np.isnan(found):  # JSON has no number for it
                yield document
            else:
                meta = document.meta | {"perplexity": found, "perplexity_bucket": bucket}
                yield Document(document.id, document.source, document.text, meta)

    @cached_property
    def _model(self) -> NgramModel:
        path = self._config.model
        return read_arpa(path, self._config.words) if is_arpa(path) else load_ngrams(path)

    @cached_property
    def _bounds(self) -> tuple[float, float]:
        """The perplexities up to which a document is in the head and in the middle."""
        config = self._config
        if config.max_head is not None and config.max_middle is not None:
            return config.max_head, config.max_middle
        table = self._model.header.percentiles
        if len(table) != 101:
            raise UserError(
                f"{config.model}: it has no percentiles; give perplexity.max_head and max_middle"
            )
        head, middle = np.interp([100 * config.head, 100 * config.middle], np.arange(101), table)
        return float(head), float(middle)
