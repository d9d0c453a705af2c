"""Settings of the step that applies published rules about texts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.pipeline.heuristics import RuleSet
from maxlm.config.pipeline.step import StepSection

_OF_LINES = ("c4", "refinedweb")
"""Sets that take lines out of texts."""


def _several(value: Any) -> Any:
    """Take one set of rules as a list of one."""
    return tuple(value) if isinstance(value, list) else (value,)


class HeuristicsConfig(StepSection):
    """Drop documents that break published rules, and lines that the rules take out."""

    kind: Literal["heuristics"] = "heuristics"
    rules: Annotated[tuple[RuleSet, ...], Field(min_length=1), BeforeValidator(_several)] = Field(
        description="sets of rules in the order in which they are applied, such as gopher_quality"
    )
    words: Literal["tokens", "whitespace"] = Field(
        "tokens",
        description="what counts as a word. tokens: words and punctuation apart, as in FineWeb's code; "
        "whitespace: what stands between spaces, as in Dolma's",
    )

    @property
    def changes_text(self) -> bool:
        """Return whether texts are other ones behind it."""
        return any(rule.kind in _OF_LINES for rule in self.rules)
