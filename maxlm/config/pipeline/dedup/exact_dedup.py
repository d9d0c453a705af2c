"""Settings of the step that drops exact copies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from maxlm.config.pipeline.step import GlobalStepSection


class ExactDedupConfig(GlobalStepSection):
    """Drop copies of earlier documents, paragraphs or lines, whatever the space between words."""

    kind: Literal["exact_dedup"] = "exact_dedup"
    unit: Literal["document", "paragraph", "line"] = Field(
        "document", description="what is compared, over all documents; the first of equals stays"
    )
    ignore_case: bool = Field(False, description="upper and lower case count as equal")
    min_words: Annotated[int, Field(ge=1)] = Field(
        1, description="paragraphs and lines of fewer words stay (code repeats its short lines)"
    )

    @property
    def changes_text(self) -> bool:
        """Return whether texts are other ones behind it."""
        return self.unit != "document"
