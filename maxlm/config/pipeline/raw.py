"""Settings of what `maxlm prepare` reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.section import PositiveInt, Section, as_tuple

Suffix = Annotated[str, Field(pattern=r"^\.[A-Za-z0-9_.+-]+$")]


class RawTextConfig(Section):
    """Where raw text comes from, for `maxlm prepare`."""

    kind: Literal["python_stdlib", "files"] = Field(
        description="python_stdlib: sources of the running Python's standard library; files: text files under `paths`"
    )
    paths: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        (),
        description="files, folders, patterns such as crawl/*.warc.gz, and URLs such as s3://bucket/folder; of folders "
        "what ends in .txt, .md, .py, .html, .jsonl, .parquet, .warc, .wet (compressed: .gz, .zst, .bz2, .xz)",
    )
    suffixes: Annotated[tuple[Suffix, ...], BeforeValidator(as_tuple)] = Field(
        (), description="other files of folders to read as text, such as [.c, .h, .rst]"
    )
    text_key: str = Field("text", description="key of JSON lines, column of Parquet: the text")
    meta_keys: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        ("url", "date", "language", "license", "licence"),
        description="keys and columns that are kept beside the text",
    )
    licence: str | None = Field(
        None,
        description="of all its texts that name no other, by its SPDX identifier; goes to the manifest and to `meta`",
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
