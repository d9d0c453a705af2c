"""Sort documents into head, middle and tail by percentiles of a score over all shards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.filters.top_fraction import (
    count_scored,
    number_of,
    number_of_share,
    order_numbers,
    refuse_unknown,
    score_of,
    select_greatest,
)
from data_pipeline.steps.step import Arrays, Decision, Shard, Work
from maxlm.config.pipeline.filters.buckets import BucketsConfig


class Buckets:
    """Gives each document its bucket and keeps some; of equal scores all are in the better one, and
    a document without the score is in the tail.
    """

    def __init__(self, config: BucketsConfig):
        self._config = config
        self._sign = 1 if config.best == "highest" else -1

    def keys(self, documents: Iterator[Document], shard: Shard, given: Sequence[Path]) -> Arrays:
        """Return a number for each document that sorts as its score, the best last."""
        del shard, given
        return {"order": order_numbers(documents, self._config.score, sign=self._sign)}

    def reduce(self, keys: Sequence[Path], work: Work) -> Decision:
        """Find the worst score of the head, and that of the middle."""
        protected = work.protected | set(self._config.protect)
        stays = [shard.source in protected for shard in work.shards]
        own = [path for path, stay in zip(keys, stays, strict=True) if not stay]
        refuse_unknown(own, "buckets", self._config.score)
        scored, documents = count_scored(own)
        shares = self._config.head, self._config.middle
        bounds = [self._bound(own, number_of_share(scored, share)) for share in shares]
        up_to = {
            name: self._sign * bound
            for name, bound in zip(("head", "middle"), bounds, strict=True)
            if not math.isnan(bound)
        }
        report = {"documents": documents, "without_score": documents - scored, "up_to": up_to}
        verdicts = ({"bounds": np.array(bounds), "stays": np.array([stay])} for stay in stays)
        return Decision(verdicts, report)

    def apply(self, documents: Iterator[Document], verdict: Arrays) -> Iterator[Document | Dropped]:
        """Yield the documents of a shard with their buckets, those of others as dropped."""
        head, middle = verdict["bounds"].tolist()
        (stays,) = verdict["stays"].tolist()
        for document in documents:
            score = document.meta.get(self._config.score)
            value = self._sign * number_of(score)  # nan, which no bound is below, if there is none
            bucket = "head" if value >= head else "middle" if value >= middle else "tail"
            if stays or bucket in self._config.keep:
                document.meta |= {self._config.name: bucket}
                yield document
            else:
                yield Dropped(document, f"buckets/{bucket}", f"{score}")

    @staticmethod
    def _bound(paths: Sequence[Path], wanted: int) -> float:
        """Return the wanted-th best score, times the sign; nan if none is wanted."""
        score = score_of(select_greatest(paths, wanted)[0]) if wanted else None
        return math.nan if score is None else score
