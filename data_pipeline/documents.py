"""A document on its way through the pipeline, and the verdict that ends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

Value = str | int | float | bool


@dataclass(slots=True)
class Document:
    """A text, where it is from, and what is known of it.

    Attributes:
      id: names the document for ever: its source, its file and its place in that file.
      source: the name of its source in `data.sources`.
      text: valid UTF-8 (no lone surrogates), line ends `\\n`.
      meta: url, language, language_score, licence and the like; stored as one JSON column.
    """

    id: str
    source: str
    text: str
    meta: dict[str, Value] = field(default_factory=dict)


def origin_of(identity: str, meta: Mapping[str, Value]) -> str:
    """Return the id of the document that one was made of, in the end; its own if it was read."""
    return str(meta.get("origin", identity))


class Dropped(NamedTuple):
    """A document that a step leaves out.

    Attributes:
      document: as it came in.
      reason: the published name of the rule, such as "gopher_quality/word_count": one of a few, as
        they are counted.
      detail: what the rule saw, such as "12 words" or the id of the copy that stays; for people.
    """

    document: Document
    reason: str
    detail: str = ""
