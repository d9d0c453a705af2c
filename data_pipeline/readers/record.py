"""What readers find in a file: texts, and things that are no text, each with its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from data_pipeline.documents import Value

# A longer text, line or payload is not held in memory: it is skipped, counted and named.
MAX_RECORD_BYTES = 2**26


@dataclass(slots=True)
class Found:
    """A text.

    Attributes:
      place: where in the file it is, such as ":12" for line 12; nothing if it is the whole file.
      text: not cleaned yet.
      meta: what the file says of it.
    """

    place: str
    text: str
    meta: dict[str, Value] = field(default_factory=dict)


class Unread(NamedTuple):
    """Something that gave no text, and why: a reason of few, as they are counted."""

    place: str
    reason: str


def scalars(values: Mapping[str, object], names: tuple[str, ...]) -> dict[str, Value]:
    """Return those of the named values that a document's meta can hold."""
    return {
        name: value
        for name in names
        if isinstance(value := values.get(name), str | int | float | bool)
    }
