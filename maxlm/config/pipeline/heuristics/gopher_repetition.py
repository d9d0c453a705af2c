"""Settings of Gopher's repetition rules."""

from __future__ import annotations

from typing import Literal

from maxlm.config.section import Fraction, Section


class GopherRepetitionConfig(Section):
    """Repetition rules of MassiveText (arXiv:2112.11446, table A1); null turns one off."""

    kind: Literal["gopher_repetition"] = "gopher_repetition"
    max_dup_para_frac: Fraction | None = 0.30
    max_dup_para_char_frac: Fraction | None = 0.20
    max_dup_line_frac: Fraction | None = 0.30
    max_dup_line_char_frac: Fraction | None = 0.20
    max_top_2_gram_char_frac: Fraction | None = 0.20
    max_top_3_gram_char_frac: Fraction | None = 0.18
    max_top_4_gram_char_frac: Fraction | None = 0.16
    max_dup_5_gram_char_frac: Fraction | None = 0.15
    max_dup_6_gram_char_frac: Fraction | None = 0.14
    max_dup_7_gram_char_frac: Fraction | None = 0.13
    max_dup_8_gram_char_frac: Fraction | None = 0.12
    max_dup_9_gram_char_frac: Fraction | None = 0.11
    max_dup_10_gram_char_frac: Fraction | None = 0.10
