"""Score documents with a linear classifier of words."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from data_pipeline.classifier.model import DECIMALS, Classifier, load_classifier
from data_pipeline.documents import Document, Dropped
from maxlm.config.pipeline.filters.classifier import ClassifierConfig


class ClassifierStep:
    """Drops documents that are probably not of the good kind."""

    def __init__(self, config: ClassifierConfig):
        self._config = config

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield each document with its probability, or dropped."""
        threshold = self._config.threshold
        for document in documents:
            score = round(self._model.probability(document.text), DECIMALS)
            if threshold is not None and score < threshold:
                yield Dropped(document, f"classifier/{self._config.score}", f"{score:.4f}")
            else:
                meta = document.meta | {self._config.score: score}
                yield Document(document.id, document.source, document.text, meta)

    @cached_property
    def _model(self) -> Classifier:
        return load_classifier(self._config.model)
