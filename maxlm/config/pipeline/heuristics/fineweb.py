"""Settings of FineWeb's rules."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from maxlm.config.section import Count, Fraction, NonNegativeFloat, Section


class FinewebConfig(Section):
    """Rules that FineWeb adds (arXiv:2406.17557, 3.5); null turns one off."""

    kind: Literal["fineweb"] = "fineweb"
    min_line_punct_ratio: Fraction | None = Field(
        0.12, description="lines that end with punctuation"
    )
    max_short_line_ratio: Fraction | None = Field(
        0.67, description="lines of at most short_line_length"
    )
    short_line_length: Count = 30
    max_char_dup_ratio: Fraction | None = Field(
        0.01,
        description="characters in repeated lines, as in the code that made the data set (its paper says 0.1)",
    )
    max_new_line_ratio: NonNegativeFloat | None = Field(0.3, description="line ends per word")
