"""Settings of RefinedWeb's line-wise rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.section import Count, Fraction, Section, as_tuple


class RefinedwebConfig(Section):
    """Line-wise corrections of RefinedWeb (arXiv:2306.01116, G.2): lines that belong to the page and
    not to its text go, and documents that consist of them.

    Numbers are the paper's but for `max_upper_ratio`, which is that of DCLM (arXiv:2406.11794), of
    letters in place of all characters. The paper has one example of phrases for each place: sign-in,
    Read more..., items in cart; the others are own.
    """

    kind: Literal["refinedweb"] = "refinedweb"
    max_upper_ratio: Fraction | None = Field(
        0.5,
        description="lines with more of their letters in capitals go (the paper: mainly capitals)",
    )
    numeric: bool = Field(True, description="lines of digits alone go")
    counters: bool = Field(True, description="lines such as `3 likes` go")
    single_words: bool = Field(True, description="lines of one word go")
    short_line_words: Count = Field(
        10, description="the following go from lines of at most as many words"
    )
    begins: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        ("sign-in", "sign in", "log in"), description="begins of short lines"
    )
    ends: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        ("read more...", "read more", "continue reading"), description="ends of short lines"
    )
    anywhere: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        ("items in cart",), description="phrases in short lines"
    )
    max_flagged_word_ratio: Fraction | None = Field(
        0.05, description="documents with more of their words in such lines go"
    )
