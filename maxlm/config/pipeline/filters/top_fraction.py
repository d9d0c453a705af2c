"""Settings of the step that keeps the documents of the highest scores."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from maxlm.config.pipeline.step import GlobalStepSection
from maxlm.config.section import Name


class TopFractionConfig(GlobalStepSection):
    """Keep the share of all documents whose score in `meta` is highest, or lowest.

    The threshold is that of all sources together; protected sources do not count for it.
    """

    kind: Literal["top_fraction"] = "top_fraction"
    score: Name = Field("classifier_score", description="a number in `meta`")
    fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="share of documents to keep (DCLM-Baseline, arXiv:2406.11794: 0.1)"
    )
    keep: Literal["highest", "lowest"] = Field(
        "highest", description="which scores stay; lowest suits perplexity and bits_per_byte"
    )
