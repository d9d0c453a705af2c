"""Settings of the step that judges a document by its address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.filters.word_list import EMPTY, WordList, missing_files
from maxlm.config.pipeline.step import StepSection
from maxlm.config.section import PositiveInt, as_tuple

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig

LISTS = ("domains", "urls", "words", "soft_words", "subwords")


class UrlConfig(StepSection):
    """Drop documents by the `url` that they came with, and give each the key of its address
    (`url_key`), by which `exact_dedup` with unit: url finds documents of one address.

    No list is built in. The rules are RefinedWeb's (arXiv:2306.01116, G.1).
    """

    kind: Literal["url"] = "url"
    missing: Literal["keep", "drop"] = Field("keep", description="documents without an address")
    domains: WordList = Field(EMPTY, description="hosts, with all below them")
    urls: WordList = Field(EMPTY, description="whole addresses, in any spelling")
    words: WordList = Field(EMPTY, description="whole words of which one is enough")
    soft_words: WordList = Field(EMPTY, description="whole words of which it takes several")
    soft_word_threshold: PositiveInt = 2
    subwords: WordList = Field(EMPTY, description="strings anywhere, signs between letters ignored")
    patterns: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        (), description="regular expressions, searched in the address as it came"
    )
    robots_files: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        (),
        description="opt-outs as in robots.txt; a line `Host: example.com` begins a host's rules",
    )
    robots_agents: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        ("CCBot", "GPTBot", "Google-Extended", "ClaudeBot"),
        description="a page that one of these crawlers may not take is dropped",
    )

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield files that are not there, and patterns that are no regular expressions."""
        del data
        for name in LISTS:
            yield from getattr(self, name).problems(f"{path}.{name}")
        yield from missing_files(f"{path}.robots_files", self.robots_files)
        for index, pattern in enumerate(self.patterns):
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                where = f"{path}.patterns.{index}"
                text = f"{where}={pattern!r} is not a regular expression: {error}"
                yield Problem(
                    where, f"{text}; put a backslash before a special sign that stands for itself"
                )

    def files(self) -> Iterator[str]:
        """Yield the lists."""
        for name in LISTS:
            yield from getattr(self, name).files
        yield from self.robots_files
