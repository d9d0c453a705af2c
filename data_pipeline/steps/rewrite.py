"""Add documents that a trained model writes from those that there are."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property, partial

from data_pipeline.checkpoints.loading import check_model
from data_pipeline.checkpoints.writing import Request, Writer
from data_pipeline.documents import Document, Dropped, origin_of
from data_pipeline.steps.step import problem_of
from data_pipeline.text.places import MASK
from maxlm.config.errors import Problem
from maxlm.config.pipeline.rewrite import RewriteConfig, TemplateConfig


class Rewrite:
    """Yields each document, if it stays, and behind it those that were made of it; empty answers are
    left out.
    """

    def __init__(self, config: RewriteConfig):
        self._config = config

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield what becomes of each document."""
        while portion := list(itertools.islice(documents, self._config.batch)):
            made = iter(self._answers(portion))
            for document in portion:
                new = [next(made) for _ in self._config.templates] if self._chosen(document) else []
                if self._config.keep_source:
                    yield document
                else:
                    yield Dropped(document, "rewrite/source", f"{sum(map(bool, new))} made of it")
                yield from (
                    _made(document, template, answer)
                    for template, answer in zip(self._config.templates, new, strict=bool(new))
                    if answer
                )

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield what is wrong with the model."""
        model = self._config.checkpoint
        yield from problem_of(f"{path}.checkpoint.path", partial(check_model, model))

    def _answers(self, documents: Sequence[Document]) -> list[str]:
        requests = [
            Request(f"{document.id}\0{template.name}", document.text, template.resolved)
            for document in documents
            if self._chosen(document)
            for template in self._config.templates
        ]
        return self._writer.answers(requests) if requests else []

    def _chosen(self, document: Document) -> bool:
        digest = hashlib.sha256(f"rewrite\0{document.id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self._config.fraction * 2**64

    @cached_property
    def _writer(self) -> Writer:
        return Writer(self._config)


def _made(document: Document, template: TemplateConfig, answer: str) -> Document:
    text = f"{document.text}\n\n{answer}" if template.with_source else answer
    meta = {key: value for key, value in document.meta.items() if key != MASK}
    meta |= {"origin": origin_of(document.id, document.meta), "rewritten_by": template.name}
    return Document(f"{document.id}#{template.name}", document.source, text, meta)
