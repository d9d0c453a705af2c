"""Score documents with a classifier: of words, of a trained model's hidden states, or fastText's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property, partial

from data_pipeline.checkpoints.loading import check_model, fingerprint_of
from data_pipeline.checkpoints.reading import Reader
from data_pipeline.classifier.model import DECIMALS, Classifier, load_classifier
from data_pipeline.documents import Document, Dropped
from data_pipeline.fasttext.model import FastText, label_number, load_fasttext
from data_pipeline.steps.step import problem_of
from maxlm.config.errors import Problem, UserError
from maxlm.config.pipeline.filters.classifier import ClassifierConfig

CHECKPOINT_DECIMALS = 4  # devices differ in later ones


class ClassifierStep:
    """Drops documents that are probably not of the good kind."""

    def __init__(self, config: ClassifierConfig):
        self._config = config

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield each document with its probability, or dropped."""
        threshold = self._config.threshold
        for document, score in self._scored(documents):
            if threshold is not None and score < threshold:
                yield Dropped(document, f"classifier/{self._config.score}", f"{score:.4f}")
            else:
                meta = document.meta | {self._config.score: score}
                yield Document(document.id, document.source, document.text, meta)

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield what is wrong with the classifier, and with the model whose states it was trained on."""
        checkpoint, label = self._config.checkpoint, self._config.label
        if checkpoint is not None:
            if not any(checkpoint.files()):
                return  # it is missing, which its section says
            yield from problem_of(f"{path}.checkpoint.path", partial(check_model, checkpoint))
        if label is None:
            yield from problem_of(f"{path}.model", lambda: self._checked)
        else:
            yield from problem_of(f"{path}.model", partial(self._number_of, label))

    def _number_of(self, label: str) -> int:
        return label_number(self._fasttext, label, self._config.model)

    def _scored(self, documents: Iterable[Document]) -> Iterator[tuple[Document, float]]:
        if self._config.label is not None:
            number = self._number_of(self._config.label)
            for document in documents:
                found = self._fasttext.probabilities(document.text)[number]
                yield document, round(float(found), DECIMALS)
        elif self._checked.header.checkpoint is None:
            for document in documents:
                yield document, round(self._model.probability(document.text), DECIMALS)
        else:
            texts = ((document, document.text) for document in documents)
            for document, features in self._reader.features(texts):
                yield document, round(self._model.probability_of(features), CHECKPOINT_DECIMALS)

    @cached_property
    def _model(self) -> Classifier:
        return load_classifier(self._config.model)

    @cached_property
    def _fasttext(self) -> FastText:
        return load_fasttext(self._config.model)

    @cached_property
    def _reader(self) -> Reader:
        """The model whose hidden states the classifier knows."""
        assert self._config.checkpoint is not None, "refused before"
        return Reader(self._config.checkpoint)

    @cached_property
    def _checked(self) -> Classifier:
        """The classifier, which knows what the step gives it: words, or states of this checkpoint.

        Raises:
          UserError: it knows other features, or those of another model.
        """
        header, checkpoint = self._model.header, self._config.checkpoint
        if header.checkpoint is None:
            if checkpoint is not None:
                raise UserError(
                    f"classifier.checkpoint: {self._config.model} was trained on words; remove the "
                    "setting, or train it with --checkpoint"
                )
            return self._model
        if checkpoint is None:
            raise UserError(
                f"{self._config.model} was trained on hidden states of a model; name it as classifier.checkpoint.path"
            )
        if fingerprint_of(checkpoint) != header.checkpoint:
            raise UserError(
                f"classifier.checkpoint.path={checkpoint.path}: {self._config.model} was trained on hidden states of "
                "another model or step; name that one, or train the classifier again"
            )
        if checkpoint.max_tokens != header.max_tokens:
            raise UserError(
                f"classifier.checkpoint.max_tokens={checkpoint.max_tokens}: {self._config.model} was trained on "
                f"{header.max_tokens}; use that"
            )
        return self._model
