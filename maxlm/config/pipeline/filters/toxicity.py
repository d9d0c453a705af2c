"""Settings of the step that judges a document by unwanted words, or a classifier of such texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.filters.word_list import EMPTY, WordList, missing_file
from maxlm.config.pipeline.step import StepSection
from maxlm.config.section import Count, Fraction

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig


class ToxicityConfig(StepSection):
    """Drop documents with words of your lists (`toxicity_hits`), or that are like the texts you
    labelled (`toxicity_score`). No list and no model is built in.
    """

    kind: Literal["toxicity"] = "toxicity"
    lexicon: WordList = Field(EMPTY, description="words and phrases, in any case")
    max_count: Count | None = Field(
        0, description="documents with more of them go (C4, arXiv:1910.10683, 2.2: none is allowed)"
    )
    max_ratio: Fraction | None = Field(None, description="documents with more per word go")
    model: str | None = Field(
        None, description="a classifier of `maxlm data train-classifier TOXIC OTHER`"
    )
    threshold: Fraction = Field(
        0.5, description="documents that are toxic with this probability, or a higher one, go"
    )

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield files that are not there, and settings that judge nothing."""
        del data
        yield from self.lexicon.problems(f"{path}.lexicon")
        if self.model is not None:
            make = "maxlm data train-classifier TOXIC_TEXTS OTHER_TEXTS"
            yield from missing_file(f"{path}.model", self.model, made_by=make)
        elif not self.lexicon:
            yield Problem(path, f"{path} judges by nothing; give {path}.lexicon or {path}.model")

    def files(self) -> Iterator[str]:
        """Yield the lists and the model."""
        yield from self.lexicon.files
        yield from filter(None, [self.model])
