"""Settings of StarCoder's rules for code."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from maxlm.config.section import Count, Fraction, NonNegativeFloat, Section


class StarcoderConfig(Section):
    """Rules for code of StarCoder (arXiv:2305.06161, 3.1; arXiv:2402.19173, 2.1), with SantaCoder's
    for comments and stars (arXiv:2301.03988); null turns one off.

    Sizes of JSON and YAML, and that XSLT alone may be XML, are as DeepSeek-Coder (arXiv:2401.14196,
    2.1) quotes StarCoder's rules. The language is that of the suffix of `path` or `file`; rules of
    other languages do not count.
    """

    kind: Literal["starcoder"] = "starcoder"
    max_lines: Count | None = 100_000
    max_line_length: Count | None = Field(1000, description="not of data, prose and markup")
    max_avg_line_length: NonNegativeFloat | None = Field(100, description="likewise")
    max_long_line_length: Count | None = Field(
        100_000, description="of HTML, JSON, Markdown, Roff, SMT, TeX, text and XML"
    )
    max_data_lines: Count | None = Field(
        512, description="lines of text, JSON, YAML, OWL and Graphviz"
    )
    min_alpha_ratio: Fraction | None = Field(
        0.25, description="letters per character; of 68K assembly and WebAssembly, digits too"
    )
    auto_generated: bool = Field(True, description="files whose first five lines say so go")
    max_encoded_run: Count | None = Field(
        1024, description="characters of base64, hexadecimal or escaped data in a row"
    )
    max_encoded_ratio: Fraction | None = Field(0.5, description="share of such data")
    xml: bool = Field(True, description="files that begin as XML go, but for XSLT")
    text_names: bool = Field(
        True,
        description="texts go but for requirements, readme, notes, todo, description, cmakelists",
    )
    min_html_text_ratio: Fraction | None = Field(0.2, description="visible text in HTML")
    min_html_text_chars: Count | None = 100
    min_data_chars: Count | None = Field(50, description="characters of JSON and YAML")
    max_data_chars: Count | None = 5000
    min_comment_ratio: Fraction | None = Field(
        0.01, description="comments in Python, Java and JavaScript"
    )
    max_comment_ratio: Fraction | None = 0.8
    min_stars: Count | None = Field(
        None, description="stars of the repository, `stars` of the document"
    )
