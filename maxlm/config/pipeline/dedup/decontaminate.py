"""Settings of the step that keeps evaluation data out of the corpus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.filters.word_list import missing_files
from maxlm.config.pipeline.step import GlobalStepSection, changes_behind
from maxlm.config.section import as_tuple

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig

Paths = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]


class DecontaminateConfig(GlobalStepSection):
    """Drop documents, or cut out or mask passages, that overlap with evaluation files.

    The defaults are GPT-3's: runs of 13 words, 200 characters cut on either side, shorter pieces
    dropped, and the document with more than 10 pieces (arXiv:2005.14165, appendix C).
    """

    COMPARES: ClassVar[bool] = False  # with evaluation files alone

    kind: Literal["decontaminate"] = "decontaminate"
    benchmarks: dict[str, Paths] = Field(
        description="evaluation files by benchmark: .jsonl, .json and .parquet (every text in a "
        "record), .txt and .md (a file is an item)"
    )
    ngram_words: Annotated[int, Field(ge=2, le=64)] = Field(
        13, description="words in a row that an item and a document may not share"
    )
    min_words: Annotated[int, Field(ge=2, le=64)] = Field(
        8, description="texts of fewer words are passed over; of fewer than ngram_words, all count"
    )
    near_coverage: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.8,
        description="share of an item's word 5-grams from which on a document holds it, word for "
        "word or not (null: only ngram_words counts)",
    )
    action: Literal["drop", "cut", "mask"] = Field(
        "drop",
        description="drop the document; cut the passage out and keep the pieces; or mask: leave it "
        "in, without loss",
    )
    margin_characters: Annotated[int, Field(ge=0)] = Field(
        200, description="cut: what goes before and after the passage, too"
    )
    min_piece_characters: Annotated[int, Field(ge=1)] = Field(
        200, description="cut: shorter pieces are dropped"
    )
    max_pieces: Annotated[int, Field(ge=1)] = Field(
        10, description="cut: a document of more pieces is dropped"
    )

    @property
    def changes_text(self) -> bool:
        """Return whether texts are other ones behind it."""
        return self.action == "cut"

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield what is wrong between the settings, and steps that come too late."""
        yield from super().problems(path, data)
        if self.action == "mask":
            yield from changes_behind(path, data)
        for name, files in self.benchmarks.items():
            yield from missing_files(f"{path}.benchmarks.{name}", files)
        if not any(self.benchmarks.values()):
            yield Problem(f"{path}.benchmarks", f"{path}.benchmarks names no file; name some")
        if self.min_words > self.ngram_words:
            yield Problem(
                f"{path}.min_words",
                f"{path}.min_words={self.min_words} is more than "
                f"ngram_words={self.ngram_words}; lower it",
            )

    def files(self) -> Iterator[str]:
        """Yield the evaluation files."""
        for paths in self.benchmarks.values():
            yield from paths
