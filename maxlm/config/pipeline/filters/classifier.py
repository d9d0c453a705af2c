"""Settings of the step that scores documents with a classifier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.checkpoint import CheckpointSection, ScoringCheckpoint
from maxlm.config.pipeline.filters.word_list import missing_file
from maxlm.config.pipeline.step import StepSection
from maxlm.config.section import Fraction, Name

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig


class ClassifierConfig(StepSection):
    """Say how probably a document is of the good kind, and drop those below a threshold.

    The model is of `maxlm data train-classifier`, or of `fasttext supervised`.
    """

    kind: Literal["classifier"] = "classifier"
    model: str = Field(description="the classifier's file; fastText's ends in .bin")
    label: str | None = Field(
        None, description="of a fastText model, the label whose probability is the score"
    )
    checkpoint: ScoringCheckpoint | None = Field(
        None, description="the trained model whose hidden states the classifier was trained on"
    )
    score: Name = Field("classifier_score", description="the name of the probability in `meta`")
    threshold: Fraction | None = Field(
        0.5, description="probability that a document needs (null: none is dropped)"
    )

    @property
    def trained_model(self) -> CheckpointSection | None:
        """Return the checkpoint."""
        return self.checkpoint

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield a model that is not there, and settings that it does not have."""
        del data
        own = not self.model.endswith(".bin")
        make = "maxlm data train-classifier GOOD_TEXTS OTHER_TEXTS" if own else None
        yield from missing_file(f"{path}.model", self.model, made_by=make)
        if self.checkpoint is not None:
            yield from self.checkpoint.problems(f"{path}.checkpoint")
        if self.model.endswith(".bin") != (self.label is not None):
            what = "needs the label that is good" if self.label is None else "is for a .bin file"
            yield Problem(
                f"{path}.label", f"{path}.label={self.label!r}, model={self.model!r}: it {what}"
            )

        elif self.label is not None and self.checkpoint is not None:
            yield Problem(
                f"{path}.checkpoint",
                f"{path}.checkpoint: {self.model} reads words alone; remove the setting",
            )

    def files(self) -> Iterator[str]:
        """Yield the model, and what says which checkpoint it is."""
        yield self.model
        if self.checkpoint is not None:
            yield from self.checkpoint.files()
