"""Settings of the step that drops near copies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.step import GlobalStepSection
from maxlm.config.section import PositiveInt, as_tuple
from maxlm.files import place_of

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig

INDEX_LISTING = "index.json"
"""Of the folder of an index: how it was made, and its files."""


class NearDedupConfig(GlobalStepSection):
    """Drop documents nearly equal to one that stays: min-hash bands propose, the exact Jaccard
    similarity of their word n-grams decides.

    The defaults are FineWeb's (arXiv:2406.17557): pairs of similarity 0.75 are proposed with
    probability 0.77, of 0.85 with 0.99, of 0.95 always.
    """

    kind: Literal["near_dedup"] = "near_dedup"
    ngram_words: Annotated[int, Field(ge=1, le=64)] = Field(5, description="words in an n-gram")
    bands: Annotated[int, Field(ge=1, le=256)] = Field(
        14, description="bands of the signature; documents that share one are compared"
    )
    rows: Annotated[int, Field(ge=1, le=64)] = Field(8, description="hashes in a band")
    min_similarity: Annotated[float, Field(gt=0, le=1)] = Field(
        0.75, description="Jaccard similarity from which on a document counts as a copy"
    )
    keep: Literal["first", "longest", "score"] = Field(
        "first",
        description="which of similar documents stays: the first, the one of most characters, or "
        "that of the highest `score`; the first among equals",
    )
    score: str | None = Field(
        None, description="name of the number in the documents' metadata that keep=score asks for"
    )
    large_cluster: PositiveInt = Field(
        1000, description="clusters of at least this many documents are named in the report"
    )
    earlier: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(
        (), description="folders of earlier runs' `index`: documents like theirs go, too"
    )
    index: str | None = Field(
        None, description="new folder for an index of what stays, for `earlier` of later runs"
    )

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield what is wrong between the settings."""
        yield from super().problems(path, data)
        if (self.keep == "score") != (self.score is not None):
            yield Problem(
                f"{path}.score",
                f"{path}.score={self.score} does not go with keep={self.keep}; "
                "give both keep: score and the name of a number, or neither",
            )
        if self.index is not None and place_of(self.index) in map(place_of, self.earlier):
            yield Problem(
                f"{path}.index",
                f"{path}.index={self.index} is one of {path}.earlier, whose documents it would lose; give a new "
                "folder, and later runs both of them as `earlier`",
            )

    def files(self) -> Iterator[str]:
        """Yield the listings of earlier indexes, which hold the hashes of their files."""
        for folder in self.earlier:
            yield f"{folder}/{INDEX_LISTING}"
