"""Settings of RedPajama's rules for code."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from maxlm.config.section import Count, Fraction, NonNegativeFloat, Section


class RedpajamaCodeConfig(Section):
    """Rules for code of RedPajama (its github_run_filter.py), which Dolma takes over
    (arXiv:2402.00159, 5.1); null turns one off.
    """

    kind: Literal["redpajama_code"] = "redpajama_code"
    max_line_length: Count | None = 1000
    max_avg_line_length: NonNegativeFloat | None = 100
    min_alnum_ratio: Fraction | None = Field(0.25, description="letters and digits per character")
    min_alpha_token_ratio: NonNegativeFloat | None = Field(1.5, description="letters per token")
