"""Settings of the step that sorts all documents into head, middle and tail by a score."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.step import GlobalStepSection
from maxlm.config.section import Fraction, Name, as_tuple

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig

Bucket = Literal["head", "middle", "tail"]
Buckets = Annotated[tuple[Bucket, ...], BeforeValidator(as_tuple), Field(min_length=1)]


class BucketsConfig(GlobalStepSection):
    """Sort documents into head, middle and tail by percentiles of their scores, and keep certain
    buckets, as CCNet (arXiv:1911.00359, 4.1) has them.

    The percentiles are those of all sources together; protected ones do not count for them.
    """

    kind: Literal["buckets"] = "buckets"
    score: Name = Field("bits_per_byte", description="a number in `meta`")
    best: Literal["lowest", "highest"] = Field(
        "lowest", description="the scores of the head; lowest suits perplexity and bits_per_byte"
    )
    head: Fraction = Field(0.3, description="share of the documents with a score in the head")
    middle: Fraction = Field(0.6, description="share of those in head and middle")
    keep: Buckets = ("head", "middle")
    name: Name = Field("bucket", description="of a document's bucket in `meta`")

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield sources that are none, and shares that contradict each other."""
        yield from super().problems(path, data)
        if self.head > self.middle:
            text = f"{path}.head={self.head:g} is above {path}.middle={self.middle:g}; lower it"
            yield Problem(f"{path}.head", text)
