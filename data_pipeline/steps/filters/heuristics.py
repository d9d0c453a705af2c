"""Apply published rules about texts; statistics that several sets ask for are found once."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.documents import Document, Dropped
from data_pipeline.heuristics.rules import Broken
from data_pipeline.heuristics.sets import RULE_SETS
from data_pipeline.heuristics.text import Text
from maxlm.config.pipeline.filters.heuristics import HeuristicsConfig


class Heuristics:
    """Drops a document for the first rule that it breaks, as `gopher_quality/min_doc_words`."""

    def __init__(self, config: HeuristicsConfig):
        self._config = config
        self._sets = [(section.kind, RULE_SETS[section.kind](section)) for section in config.rules]

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield each document, without the lines that the rules take out, or dropped."""
        for document in documents:
            yield self._judge(document)

    def _judge(self, document: Document) -> Document | Dropped:
        text = Text(document.text, document.meta, self._config.words)
        for name, rules in self._sets:
            result = rules(text)
            if isinstance(result, Broken):
                return Dropped(document, f"{name}/{result.rule}", f"{result.value:.4g}")
            text = result
        if text.content == document.text:
            return document
        if not text.content.strip():
            return Dropped(document, "heuristics/empty")
        return Document(document.id, document.source, text.content, document.meta)
