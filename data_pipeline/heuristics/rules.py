"""What a set of rules is: a function from a text to the text that it leaves, or to the rule that the
text breaks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from data_pipeline.heuristics.text import Text
from maxlm.config.section import Section


class Broken(NamedTuple):
    """A rule that a text breaks, by the name of its setting, and the value that was measured."""

    rule: str
    value: float


class Rules(Protocol):
    """A published set of rules."""

    def __init__(self, config: Any, /) -> None: ...

    def __call__(self, text: Text, /) -> Text | Broken:
        """Return the text, without what the rules take out, or the first rule that it breaks."""
        ...


def first_broken(config: Section, measured: Iterable[tuple[str, float]]) -> Broken | None:
    """Return the first measured value outside its limit, or None.

    Args:
      config: the limits; a setting `min_...` is the least value that passes, `max_...` the greatest,
        None passes all.
      measured: (setting, value) in the order in which they are checked; later ones are not measured
        if an earlier one is out.
    """
    for setting, value in measured:
        limit = getattr(config, setting)
        if limit is None:
            continue
        if value < limit if setting.startswith("min_") else value > limit:
            return Broken(setting, value)
    return None
