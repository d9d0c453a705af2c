"""What readers find in a file: texts, and things that are no text, each with its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from data_pipeline.documents import Value

# A longer text, line or payload is not held in memory: it is skipped, counted and named.
MAX_RECORD_BYTES = 2**26
LICENCES = ("licence", "license")
INTEGERS = range(-(2**63), 2**64)  # that readers of JSON take for integers


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


class Hashed(NamedTuple):
    """Bytes that are only hashed, as no reader asked for them: a sign that the file is at hand."""

    bytes: int


def scalars(values: Mapping[str, object], names: tuple[str, ...]) -> dict[str, Value]:
    """Return those of the named values that a document's meta can hold: a number that JSON cannot hold
    (nan, infinity) is none. Licences that a file lists, as The Stack's do, become the SPDX expression
    that all of them hold.
    """
    found = {name: values.get(name) for name in names}
    for name in LICENCES:
        listed = found.get(name)
        if isinstance(listed, list) and listed and all(isinstance(one, str) for one in listed):
            found[name] = (
                listed[0] if len(listed) == 1 else " AND ".join(f"({one})" for one in listed)
            )
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, str | int | float | bool) and _is_held(value)
    }


def _is_held(value: Value) -> bool:
    """Tell whether a value comes back from JSON as it was."""
    if isinstance(value, int):
        return value in INTEGERS
    return not isinstance(value, float) or math.isfinite(value)
