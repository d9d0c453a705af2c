"""Judge documents by the words of the user's lists."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from data_pipeline.documents import Document, Dropped
from data_pipeline.text.lexicon import Lexicon
from data_pipeline.urls.block_lists import read_list
from maxlm.config.pipeline.filters.toxicity import ToxicityConfig


class Toxicity:
    """Drops documents with too many unwanted words, by number or by share of their words."""

    def __init__(self, config: ToxicityConfig):
        self._config = config

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield each document with the number of its unwanted words, or dropped."""
        for document in documents:
            yield self._judge(document)

    def _judge(self, document: Document) -> Document | Dropped:
        hits = self._lexicon.find(document.text)
        most, ratio = self._config.max_count, hits.count / max(hits.words, 1)
        if most is not None and hits.count > most:
            return Dropped(document, "toxicity/max_count", f"{hits.count}, such as {hits.first}")
        if self._config.max_ratio is not None and ratio > self._config.max_ratio:
            return Dropped(document, "toxicity/max_ratio", f"{ratio:.3g}, such as {hits.first}")
        meta = document.meta | {"toxicity_hits": hits.count}
        return Document(document.id, document.source, document.text, meta)

    @cached_property
    def _lexicon(self) -> Lexicon:
        return Lexicon(read_list(self._config.lexicon, str))
