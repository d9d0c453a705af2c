"""Settings of Gopher's quality rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from maxlm.config.section import Count, Fraction, NonNegativeFloat, Section, as_tuple


class GopherQualityConfig(Section):
    """Quality rules of MassiveText (arXiv:2112.11446, A.1.1); null turns one off."""

    kind: Literal["gopher_quality"] = "gopher_quality"
    min_doc_words: Count | None = 50
    max_doc_words: Count | None = 100_000
    min_avg_word_length: NonNegativeFloat | None = 3
    max_avg_word_length: NonNegativeFloat | None = 10
    max_hash_word_ratio: NonNegativeFloat | None = 0.1
    max_ellipsis_word_ratio: NonNegativeFloat | None = 0.1
    max_bullet_lines_ratio: Fraction | None = 0.9
    max_ellipsis_lines_ratio: Fraction | None = 0.3
    min_alpha_words_ratio: Fraction | None = 0.8
    min_stop_words: Count | None = 2
    stop_words: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = (
        "the",
        "be",
        "to",
        "of",
        "and",
        "that",
        "have",
        "with",
    )
