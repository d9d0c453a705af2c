"""Judge documents by the words of the user's lists, or by a classifier of the user's labels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from data_pipeline.classifier.model import DECIMALS, Classifier, load_classifier
from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.step import problem_of
from data_pipeline.text.lexicon import Hits, Lexicon
from data_pipeline.urls.block_lists import list_problems, read_list
from maxlm.config.errors import Problem, UserError
from maxlm.config.pipeline.filters.toxicity import ToxicityConfig


class Toxicity:
    """Drops documents with too many unwanted words, by number or by share of their words, or a high score."""

    def __init__(self, config: ToxicityConfig):
        self._config = config

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield each document with what was found, or dropped."""
        for document in documents:
            yield self._judge(document)

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield lists that cannot be read or have no word, and a model that is none of words."""
        yield from list_problems(self._config.lexicon, f"{path}.lexicon")
        if self._config.model is not None:
            yield from problem_of(f"{path}.model", self._check_model)

    def _check_model(self) -> None:
        self._model.require_words()

    def _judge(self, document: Document) -> Document | Dropped:
        meta = dict(document.meta)
        if self._config.lexicon:
            hits = self._lexicon.find(document.text)
            if rule := self._broken(hits):
                return Dropped(document, rule, f"{hits.entries}, such as {hits.first}")
            meta["toxicity_hits"] = hits.entries
        if self._config.model is not None:
            score = round(self._model.probability(document.text), DECIMALS)
            if score >= self._config.threshold:
                return Dropped(document, "toxicity/score", f"{score:.4f}")
            meta["toxicity_score"] = score
        return Document(document.id, document.source, document.text, meta)

    def _broken(self, hits: Hits) -> str:
        """Return the rule that a document's unwanted words break, or nothing."""
        count, ratio = self._config.max_count, self._config.max_ratio
        if count is not None and hits.entries > count:
            return "toxicity/max_count"
        if ratio is not None and hits.entries > ratio * hits.words:
            return "toxicity/max_ratio"
        return ""

    @cached_property
    def _lexicon(self) -> Lexicon:
        entries = list(read_list(self._config.lexicon, str))
        if not entries:
            raise UserError(
                f"toxicity.lexicon: {', '.join(self._config.lexicon.files)}: no words, so nothing "
                "would be found; fill the files, or remove the setting"
            )
        return Lexicon(entries)

    @cached_property
    def _model(self) -> Classifier:
        return load_classifier(str(self._config.model))
