"""Settings of what `maxlm prepare` reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.section import PositiveInt, Section, as_tuple


class RawTextConfig(Section):
    """Where raw text comes from, for `maxlm prepare`."""

    kind: Literal["python_stdlib", "files"] = Field(
        description="python_stdlib: sources of the running Python's standard library; files: text files under `paths`"
    )
    paths: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        (), description="files, or folders searched for *.txt, *.md, *.py and *.jsonl (key `text`)"
    )
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="share of documents held out, chosen by a hash of the document's name"
    )
    max_document_bytes: PositiveInt = Field(
        1_000_000, description="longer documents are cut here; all pieces go to one split"
    )
    follow_links: bool = Field(
        False, description="read files and folders elsewhere that links in the folders lead to"
    )
    duplicates: Literal["drop", "drop_exact", "keep"] = Field(
        "drop",
        description="copies of earlier documents of any source of the run: drop them and near copies (word 5-grams, "
        "Jaccard similarity 0.8), drop exact ones alone, or keep all, and risk that both splits hold the same text",
    )
