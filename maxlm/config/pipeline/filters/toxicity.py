"""Settings of the step that judges a document by a list of unwanted words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.filters.word_list import EMPTY, WordList
from maxlm.config.pipeline.step import StepSection
from maxlm.config.section import Count, Fraction

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig


class ToxicityConfig(StepSection):
    """Drop documents with words of your lists (`toxicity_hits`). No list is built in."""

    kind: Literal["toxicity"] = "toxicity"
    lexicon: WordList = Field(EMPTY, description="words and phrases, in any case")
    max_count: Count | None = Field(
        0, description="documents with more of them go (C4, arXiv:1910.10683, 2.2: none is allowed)"
    )
    max_ratio: Fraction | None = Field(None, description="documents with more per word go")

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield files that are not there, and settings that judge nothing."""
        del data
        yield from self.lexicon.problems(f"{path}.lexicon")
        if not self.lexicon:
            text = f"{path}.lexicon is empty; give entries, or files with one on each line"
            yield Problem(f"{path}.lexicon", text)
