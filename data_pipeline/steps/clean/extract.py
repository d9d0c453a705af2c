"""Turn pages into text, repair wrong decodings, normalise Unicode."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property

from data_pipeline.documents import Document, Dropped
from data_pipeline.html.extractors import EXTRACTORS, Extractor
from data_pipeline.html.guard import HtmlLimits, find_danger
from data_pipeline.text.cleaning import clean
from data_pipeline.text.mojibake import MojibakeRepair
from maxlm.config.pipeline.clean.extract import ExtractConfig
from maxlm.data.tokenizers import replace_surrogates

# A byte order mark, XHTML's declaration and a comment may come first (WHATWG MIME Sniffing, 7.1).
_PAGE = re.compile(
    r"\ufeff?\s*(?:<\?xml\b[^>]{0,500}>\s*)?(?:<!--.{0,500}?-->\s*)?<(?:!doctype\s+html|html|head|body|title|meta|script|div|table)\b",
    re.IGNORECASE | re.DOTALL,
)
_HTML_TYPES = ("text/html", "application/xhtml+xml")


class Extract:
    """A page becomes the text that a reader of it would read."""

    def __init__(self, config: ExtractConfig):
        self._config = config
        self._limits = HtmlLimits(config.max_tag_chars, config.max_depth)
        self._form = None if config.normal_form == "none" else config.normal_form

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield each document as text; what would hang a parser, or has no text, is dropped."""
        for document in documents:
            yield self._extract(document)

    def _extract(self, document: Document) -> Document | Dropped:
        size = len(document.text)
        if size > self._config.max_chars:
            return Dropped(document, "extract/max_chars", f"{size} characters")
        # First, so that no library meets one. Control characters go last: they are half of the
        # mojibake of Latin-1.
        text = replace_surrogates(document.text)
        if self._is_html(document):
            danger = find_danger(text, self._limits)
            if danger:
                return Dropped(document, f"extract/max_{danger}")
            text = self._extractor(text)
        if self._config.repair:
            text = self._repair(text)
        text = clean(text, form=self._form, max_marks=self._config.max_combining_marks).strip()
        if not text:
            return Dropped(document, "extract/empty")
        return Document(document.id, document.source, text, document.meta)

    def _is_html(self, document: Document) -> bool:
        if self._config.input != "auto":
            return self._config.input == "html"
        content_type = str(document.meta.get("content_type", "")).partition(";")[0].strip().lower()
        if content_type:
            return content_type in _HTML_TYPES
        return _PAGE.match(document.text) is not None

    @cached_property
    def _extractor(self) -> Extractor:
        return EXTRACTORS[self._config.extractor](self._config.main_content)

    @cached_property
    def _repair(self) -> MojibakeRepair:
        return MojibakeRepair()
