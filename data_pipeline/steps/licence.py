"""Keep documents under certain licences, by SPDX expressions (SPDX 2.3, annex D)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_pipeline.documents import Document, Dropped
from maxlm.config.pipeline.licence import LicenceConfig

HEAD_CHARACTERS = 4000  # a tag stands in a file's first comment
_TAG = re.compile(r"SPDX-License-Identifier:[ \t]*([^\n]{1,200})")
_WORDS = re.compile(r"[()]|[^\s()]+")


class Licence:
    """Drops documents without an allowed licence; `A OR B` takes one of the two, `A AND B` both."""

    def __init__(self, config: LicenceConfig):
        self._allowed = frozenset(name.lower() for name in config.allowed)
        self._missing = config.missing

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield each document with its licence, or dropped."""
        for document in documents:
            licence = licence_of(document)
            if licence is None:
                kept = self._missing == "keep"
                yield document if kept else Dropped(document, "licence/missing")
            elif is_allowed(licence, self._allowed):
                document.meta["licence"] = licence
                yield document
            else:
                yield Dropped(document, "licence/not_allowed", licence)


def licence_of(document: Document) -> str | None:
    """Return what a document says of its licence, None if it says nothing."""
    tag = _TAG.search(document.text[:HEAD_CHARACTERS])
    if tag:
        # What ends a comment on the same line is no part of it.
        return re.split(r"\*/|-->|#\}|\*\)", tag[1])[0].strip() or None
    for key in ("licence", "license"):
        value = document.meta.get(key)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def is_allowed(expression: str, allowed: frozenset[str]) -> bool:
    """Tell whether an SPDX expression can be met by licences of a list, in lower case.

    An exception (`WITH ...`) allows more than its licence. What is no expression is not allowed.
    """
    parser = _Parser(expression, allowed)
    try:
        verdict = parser.any_of()
    except (ValueError, RecursionError):
        return False
    return verdict and parser.is_at_end()


class _Parser:
    """Reads `OR` of `AND` of licences, `AND` first."""

    def __init__(self, expression: str, allowed: frozenset[str]):
        self._words, self._allowed = _WORDS.findall(expression.lower())[::-1], allowed

    def any_of(self) -> bool:
        """Read licences of which one is enough."""
        verdict = self._all_of()
        while self._is_next("or"):
            verdict = self._all_of() or verdict
        return verdict

    def is_at_end(self) -> bool:
        """Tell whether all is read."""
        return not self._words

    def _all_of(self) -> bool:
        verdict = self._one()
        while self._is_next("and"):
            verdict = self._one() and verdict
        return verdict

    def _one(self) -> bool:
        word = self._words.pop() if self._words else ")"
        if word == "(":
            verdict = self.any_of()
            if not self._is_next(")"):
                raise ValueError("a bracket that is not closed")
            return verdict
        if word in (")", "or", "and", "with"):
            raise ValueError(f"{word} where a licence should be")
        if self._is_next("with"):
            if not self._words:
                raise ValueError("an exception without a name")
            self._words.pop()
        return word.removesuffix("+") in self._allowed

    def _is_next(self, word: str) -> bool:
        found = bool(self._words) and self._words[-1] == word
        if found:
            self._words.pop()
        return found
