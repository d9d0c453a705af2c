"""Settings of the step that drops exact copies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.step import GlobalStepSection

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig


class ExactDedupConfig(GlobalStepSection):
    """Drop copies of earlier documents, paragraphs or lines, whatever the space between words; or
    documents of an address that an earlier one has.
    """

    kind: Literal["exact_dedup"] = "exact_dedup"
    unit: Literal["document", "paragraph", "line", "url"] = Field(
        "document",
        description="what is compared, over all documents; the first of equals stays. url: the "
        "`url_key` that a step `url` before it gives, one for all spellings of an address",
    )
    ignore_case: bool = Field(False, description="upper and lower case count as equal")
    min_words: Annotated[int, Field(ge=1)] = Field(
        1, description="paragraphs and lines of fewer words stay (code repeats its short lines)"
    )

    @property
    def changes_text(self) -> bool:
        """Return whether texts are other ones behind it."""
        return self.unit in ("paragraph", "line")

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield sources that are none, and addresses that no step has made comparable."""
        yield from super().problems(path, data)
        before = data.pipeline.steps[: int(path.rpartition(".")[2])]
        if self.unit == "url" and not any(step.kind == "url" for step in before):
            text = (
                f"{path}.unit=url compares the url_key of documents, which no step before it gives"
            )
            yield Problem(f"{path}.unit", f"{text}; put a step {{kind: url}} before it")
