"""Settings of the step that judges a document by its language."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.step import StepSection
from maxlm.config.section import Count, Fraction, PositiveInt

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig

LanguageCode = Annotated[str, Field(pattern="^[a-z]{2,3}$")]


def _without_thresholds(value: Any) -> Any:
    """Take a list of languages as those with the common threshold."""
    return dict.fromkeys(value) if isinstance(value, list) else value


class LanguageConfig(StepSection):
    """Keep documents in certain languages, and say of each which it is in (`language`,
    `language_score`).
    """

    kind: Literal["language"] = "language"
    languages: Annotated[
        dict[LanguageCode, Fraction | None], BeforeValidator(_without_thresholds)
    ] = Field(
        {},
        description="ISO 639 codes to keep, as a list or with a threshold each (empty: any language)",
    )
    threshold: Fraction = Field(
        0.65, description="probability that a document needs, as in FineWeb (arXiv:2406.17557)"
    )
    sample_chars: PositiveInt = Field(
        3000, description="of a longer document, its begin, middle and end are looked at"
    )
    lines: Literal["keep", "drop"] = Field(
        "keep", description="drop: leave out lines that are in other languages"
    )
    min_line_chars: Count = Field(40, description="shorter lines are kept, as too short to judge")

    @property
    def changes_text(self) -> bool:
        """Return whether texts are other ones behind it."""
        return self.lines == "drop"

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield what keeps it from running."""
        del data
        if self.lines == "drop" and not self.languages:
            text = f"{path}.lines=drop needs {path}.languages, the languages of lines to keep"
            yield Problem(f"{path}.lines", f"{text}; name them, or use lines: keep")
        if importlib.util.find_spec("py3langid") is None:
            text = f"{path} needs the package py3langid"
            yield Problem(path, f"{text}; run: pip install 'maxlm[data]'")
