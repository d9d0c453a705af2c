"""Settings of the step that keeps a share of the documents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from maxlm.config.pipeline.step import StepSection


class SampleConfig(StepSection):
    """Keep a share of the documents, chosen by a hash of their id."""

    kind: Literal["sample"] = "sample"
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(description="share of documents to keep")
