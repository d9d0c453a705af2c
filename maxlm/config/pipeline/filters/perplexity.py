"""Settings of the step that judges a document by how well a language model predicts it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.checkpoint import CheckpointSection, ScoringCheckpoint
from maxlm.config.pipeline.filters.buckets import Buckets, BucketsConfig
from maxlm.config.pipeline.filters.word_list import missing_file
from maxlm.config.pipeline.step import StepSection
from maxlm.config.section import Fraction, PositiveFloat

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig


class PerplexityConfig(StepSection):
    """Say how well a language model predicts a document, and keep certain buckets, as CCNet
    (arXiv:1911.00359, 4.1) has them.

    An n-gram model gives `perplexity`, a checkpoint `bits_per_byte`; both `perplexity_bucket`.
    """

    kind: Literal["perplexity"] = "perplexity"
    model: str | None = Field(
        None, description="file of `maxlm data train-ngrams`, or of ARPA's text format"
    )
    checkpoint: ScoringCheckpoint | None = Field(
        None, description="a trained model in place of an n-gram model"
    )
    words: Literal["normalised", "whitespace"] = Field(
        "normalised", description="how a text is cut into words, if the model is an .arpa file"
    )
    head: Fraction = Field(
        0.3,
        description="share of documents in the head: of those held out when the n-gram model was "
        "trained, or, by a checkpoint, of the corpus itself",
    )
    middle: Fraction = Field(0.6, description="share of those in head and middle")
    max_head: PositiveFloat | None = Field(
        None, description="perplexity to use instead of head; of a checkpoint, bits per byte"
    )
    max_middle: PositiveFloat | None = Field(None, description="instead of middle")
    keep: Buckets = ("head", "middle")

    @property
    def trained_model(self) -> CheckpointSection | None:
        """Return the checkpoint."""
        return self.checkpoint

    def behind(self) -> Iterator[StepSection]:
        """Yield the step that finds the percentiles of a checkpoint's figures, which are those of the
        documents themselves: nobody has measured them before.
        """
        if self.checkpoint is not None and self.max_head is None:
            yield BucketsConfig(
                score="bits_per_byte",
                head=self.head,
                middle=self.middle,
                keep=self.keep,
                name="perplexity_bucket",
            )

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield a model that is not there, and bounds that are none."""
        del data
        if (self.model is None) == (self.checkpoint is None):
            text = f"{path}.model and {path}.checkpoint: give one of them"
            yield Problem(f"{path}.model", text)
        if self.model is not None:
            make = "maxlm data train-ngrams CLEAN_TEXTS"
            yield from missing_file(f"{path}.model", self.model, made_by=make)
        if self.checkpoint is not None:
            yield from self.checkpoint.problems(f"{path}.checkpoint")
        if (self.max_head is None) != (self.max_middle is None):
            text = f"{path}.max_head and {path}.max_middle: give both or none"
            yield Problem(f"{path}.max_head", text)
        elif self.max_head is None and self.model is not None and self.model.endswith(".arpa"):
            text = f"{path}.max_head, {path}.max_middle: an ARPA file has no percentiles; give both"
            yield Problem(f"{path}.max_head", text)
        pairs = (("head", "middle"), ("max_head", "max_middle"))
        for lower, upper in pairs:
            low, high = getattr(self, lower), getattr(self, upper)
            if low is not None and high is not None and low > high:
                text = f"{path}.{lower}={low:g} is above {path}.{upper}={high:g}; lower it"
                yield Problem(f"{path}.{lower}", text)

    def files(self) -> Iterator[str]:
        """Yield the model."""
        if self.model is not None:
            yield self.model
        if self.checkpoint is not None:
            yield from self.checkpoint.files()
