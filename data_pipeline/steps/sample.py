"""Keep a fixed share of the documents, chosen by a hash: a pipeline is tried on one percent first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from data_pipeline.documents import Document, Dropped
from maxlm.config.pipeline.sample import SampleConfig


class Sample:
    """Keeps a document if the hash of its id is below the share; more documents move none."""

    def __init__(self, config: SampleConfig):
        self._fraction = config.fraction

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield the documents of the sample, and the others as dropped."""
        for document in documents:
            digest = hashlib.sha256(b"sample\0" + document.id.encode()).digest()
            place = int.from_bytes(digest[:7], "big") / 2**56
            yield document if place < self._fraction else Dropped(document, "sample")
