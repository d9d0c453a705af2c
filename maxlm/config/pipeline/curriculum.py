"""Settings of the step that puts the documents of a source in the order of a score."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.step import GlobalStepSection
from maxlm.config.section import Name

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig


class CurriculumConfig(GlobalStepSection):
    """Order each source's training documents by a score in `meta`: in buckets of equally many
    documents, at random within each. No document is dropped; sources in `protect` stay as they are.
    """

    kind: Literal["curriculum"] = "curriculum"
    score: Name = Field("classifier_score", description="a number in `meta`")
    order: Literal["ascending", "descending"] = Field(
        "ascending", description="ascending: the highest scores are read last"
    )
    buckets: Annotated[int, Field(ge=2, le=1024)] = Field(10, description="stages of the order")

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield sources that are none, and a shuffle that undoes the order."""
        yield from super().problems(path, data)
        if data.shuffle != "none":
            text = f"data.shuffle={data.shuffle} reads in another order what {path} has put in one"
            yield Problem("data.shuffle", f"{text}; use data.shuffle=none, or leave the step out")
