"""Settings of C4's rules."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from maxlm.config.section import Count, Section


class C4Config(Section):
    """Rules of C4 (arXiv:1910.10683, 2.2, and its code): lines go first, then documents of too few
    sentences.
    """

    kind: Literal["c4"] = "c4"
    terminal_punctuation: bool = Field(
        True, description="keep only lines that end like sentences (FineWeb turns this off)"
    )
    min_words_per_line: Count | None = 3
    max_word_length: Count | None = Field(1000, description="lines with a longer word go")
    javascript: bool = Field(True, description="lines that say javascript go")
    policy: bool = Field(True, description="lines about cookies, privacy and terms of use go")
    citations: bool = Field(True, description="marks such as [3] and [citation needed] go")
    lorem_ipsum: bool = Field(True, description="documents that say lorem ipsum go")
    curly_bracket: bool = Field(True, description="documents with a curly bracket go, as code")
    min_sentences: Count | None = 5
