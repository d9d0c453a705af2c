"""Settings of the step that scores documents with a classifier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.filters.word_list import missing_file
from maxlm.config.pipeline.step import StepSection
from maxlm.config.section import Fraction, Name

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig


class ClassifierConfig(StepSection):
    """Say how probably a document is of the good kind, and drop those below a threshold.

    The model is of `maxlm data train-classifier`.
    """

    kind: Literal["classifier"] = "classifier"
    model: str = Field(description="the classifier's file")
    score: Name = Field("classifier_score", description="the name of the probability in `meta`")
    threshold: Fraction | None = Field(
        0.5, description="probability that a document needs (null: none is dropped)"
    )

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield a model that is not there."""
        del data
        yield from missing_file(f"{path}.model", self.model)

    def files(self) -> Iterator[str]:
        """Yield the model."""
        yield self.model
