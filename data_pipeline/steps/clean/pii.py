"""Put placeholders in the place of personal data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from data_pipeline.documents import Document, Dropped
from data_pipeline.pii.scan import find_all, replace_all
from maxlm.config.pipeline.clean.pii import PiiConfig


class Pii:
    """Replaces what says who somebody is or how to reach, pay or be them."""

    def __init__(self, config: PiiConfig):
        self._config = config

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield each document without personal data; those of too much of it are dropped."""
        for document in documents:
            spans = find_all(document.text, self._config.types)
            most = self._config.max_found
            if most is not None and len(spans) > most:
                yield Dropped(document, "pii/max_found", f"{len(spans)} found")
            elif spans:
                text = replace_all(document.text, spans, self._config.placeholder)
                kinds = Counter(span.kind for span in spans)
                counts = {f"pii_{kind}": kinds[kind] for kind in sorted(kinds)}
                meta = document.meta | {"pii": len(spans)} | counts
                yield Document(document.id, document.source, text, meta)
            else:
                yield document
