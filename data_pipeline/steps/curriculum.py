"""Put the training documents of each source in the order of a score, bucket by bucket.

A bucket is a range of the places in which a source's documents are written
(`data_pipeline.tokens.order`), so nothing is sorted but the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from data_pipeline.documents import Document
from data_pipeline.steps.filters.top_fraction import (
    count_scored,
    greatest,
    order_numbers,
    refuse_unknown,
    score_of,
    select_greatest,
)
from data_pipeline.steps.step import Arrays, Decision, Shard, Work
from data_pipeline.tokens.order import BUCKET, BUCKETS
from maxlm.config.pipeline.curriculum import CurriculumConfig


class Curriculum:
    """Gives each document the number of its bucket; of equal scores the first are the higher ones."""

    def __init__(self, config: CurriculumConfig):
        self._config = config

    def keys(self, documents: Iterator[Document], shard: Shard, given: Sequence[Path]) -> Arrays:
        """Return a number for each document that sorts as its score; without one, below all."""
        del shard, given
        return {"order": order_numbers(documents, self._config.score)}

    def reduce(self, keys: Sequence[Path], work: Work) -> Decision:
        """Find the scores between buckets, source by source."""
        protected = work.protected | set(self._config.protect)
        own: dict[str, list[Path]] = {}
        for path, shard in zip(keys, work.shards, strict=True):
            if shard.source not in protected:
                own.setdefault(shard.source, []).append(path)
        refuse_unknown(list(chain.from_iterable(own.values())), "curriculum", self._config.score)
        documents = {
            name: sum(s.documents for s in work.shards if s.source == name) for name in own
        }
        limits = {name: self._limits(paths, documents[name]) for name, paths in own.items()}
        report = {
            name: {
                "documents": documents[name],
                "without_score": documents[name] - count_scored(own[name])[0],
                "scores": [score_of(least) for least, _ in reversed(limits[name])],
            }
            for name in own
        }
        verdicts = self._verdicts(keys, [shard.source for shard in work.shards], own, limits)
        return Decision(verdicts, report)

    def apply(self, documents: Iterator[Document], verdict: Arrays) -> Iterator[Document]:
        """Yield the documents of a shard with their buckets."""
        buckets = verdict["bucket"].tolist()
        if not buckets:  # a protected source
            yield from documents
            return
        for document, bucket in zip(documents, buckets, strict=True):
            document.meta |= {BUCKET: bucket, BUCKETS: self._config.buckets}
            yield document

    def _limits(self, paths: Sequence[Path], documents: int) -> list[tuple[int, int]]:
        """Return (least, ties) of the documents above each limit between buckets, the fewest first."""
        buckets = self._config.buckets
        wanted = [documents * number // buckets for number in range(1, buckets)]
        return [select_greatest(paths, count) if count else (2**64 - 1, 0) for count in wanted]

    def _verdicts(
        self,
        keys: Sequence[Path],
        sources: Sequence[str],
        own: dict[str, list[Path]],
        limits: dict[str, list[tuple[int, int]]],
    ) -> Iterator[Arrays]:
        above = {
            name: zip(*(greatest(paths, *limit) for limit in limits[name]), strict=True)
            for name, paths in own.items()
        }
        for _, source in zip(keys, sources, strict=True):
            bucket = np.empty(0, np.int64)
            if source in above:
                bucket = np.sum(next(above[source]), axis=0, dtype=np.int64)
                if self._config.order == "descending":
                    bucket = self._config.buckets - 1 - bucket
            yield {"bucket": bucket}
