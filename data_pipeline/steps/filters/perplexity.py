"""Sort documents into head, middle and tail by how well a language model predicts them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property, partial

import numpy as np

from data_pipeline.checkpoints.loading import check_model
from data_pipeline.checkpoints.reading import Reader
from data_pipeline.documents import Document, Dropped
from data_pipeline.ngrams.arpa import check_arpa, is_arpa, read_arpa
from data_pipeline.ngrams.model import NgramModel
from data_pipeline.ngrams.storage import load_ngrams
from data_pipeline.steps.step import problem_of
from maxlm.config.errors import Problem, UserError
from maxlm.config.pipeline.filters.perplexity import PerplexityConfig

BITS_DECIMALS = 4  # devices differ in later ones
PERPLEXITY_DECIMALS = 2


class Perplexity:
    """Drops documents of other buckets, as `perplexity/tail`; a text without words is in the tail.

    A checkpoint without bounds gives documents its figure alone: the step `buckets`, which comes
    behind it then, sorts them.
    """

    def __init__(self, config: PerplexityConfig):
        self._config = config

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield each document with its figure and bucket, or dropped."""
        name = "perplexity" if self._config.checkpoint is None else "bits_per_byte"
        for document, found in self._judged(documents):
            bucket = self._bucket(found)
            if bucket is not None and bucket not in self._config.keep:
                yield Dropped(document, f"perplexity/{bucket}", f"{found:.2f}")
            elif math.isnan(found):  # JSON has no number for it
                yield document
            else:
                meta = document.meta | {name: found}
                meta |= {"perplexity_bucket": bucket} if bucket is not None else {}
                yield Document(document.id, document.source, document.text, meta)

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield what is wrong with the model; an ARPA file is read without holding it."""
        model, checkpoint = self._config.model, self._config.checkpoint
        if checkpoint is not None:
            yield from problem_of(f"{path}.checkpoint.path", partial(check_model, checkpoint))
        if model is not None:
            read = partial(check_arpa, model) if is_arpa(model) else lambda: self._bounds
            yield from problem_of(f"{path}.model", read)

    def _judged(self, documents: Iterable[Document]) -> Iterator[tuple[Document, float]]:
        if self._config.checkpoint is not None:
            texts = ((document, document.text) for document in documents)
            for document, bits in Reader(self._config.checkpoint).bits_per_byte(texts):
                yield document, round(bits, BITS_DECIMALS)
            return
        for document in documents:
            yield document, round(self._model.perplexity(document.text), PERPLEXITY_DECIMALS)

    def _bucket(self, found: float) -> str | None:
        if self._bounds is None:
            return None
        head, middle = self._bounds
        return "head" if found <= head else "middle" if found <= middle else "tail"

    @cached_property
    def _model(self) -> NgramModel:
        path = str(self._config.model)
        return read_arpa(path, self._config.words) if is_arpa(path) else load_ngrams(path)

    @cached_property
    def _bounds(self) -> tuple[float, float] | None:
        """The figures up to which a document is in the head and in the middle."""
        config = self._config
        if config.max_head is not None and config.max_middle is not None:
            return config.max_head, config.max_middle
        if config.checkpoint is not None:
            return None
        table = self._model.header.percentiles
        if len(table) != 101:
            raise UserError(
                f"{config.model}: it has no percentiles; give perplexity.max_head and max_middle"
            )
        head, middle = np.interp([100 * config.head, 100 * config.middle], np.arange(101), table)
        return float(head), float(middle)
