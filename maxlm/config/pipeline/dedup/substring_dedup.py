"""Settings of the step that finds repeated passages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.step import GlobalStepSection, changes_behind

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig


class SubstringDedupConfig(GlobalStepSection):
    """Remove passages that occur elsewhere in the corpus, or keep them out of the loss (Lee et al.
    2021, arXiv:2107.06499).
    """

    kind: Literal["substring_dedup"] = "substring_dedup"
    min_tokens: Annotated[int, Field(ge=4, le=10_000)] = Field(
        50, description="shortest passage, in words and symbols (white space does not count)"
    )
    keep: Literal["first", "none"] = Field(
        "first", description="what becomes of a passage's first occurrence: it stays, or goes too"
    )
    action: Literal["remove", "mask"] = Field(
        "remove",
        description="remove: cut passages out; mask: leave them in, without loss (metadata "
        "`loss_masked`: first and end character of each)",
    )

    @property
    def changes_text(self) -> bool:
        """Return whether texts are other ones behind it."""
        return self.action == "remove"

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield sources that are none, and steps that come too late."""
        yield from super().problems(path, data)
        if self.action == "mask":
            yield from changes_behind(path, data)
