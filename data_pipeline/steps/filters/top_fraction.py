"""Keep the documents of the highest, or lowest, scores, over all shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil, isnan
from pathlib import Path

import numpy as np

from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.step import Arrays, Decision, Shard, Work
from data_pipeline.storage.arrays import read_arrays
from maxlm.config.errors import UserError
from maxlm.config.pipeline.filters.top_fraction import TopFractionConfig

_DIGIT_BITS = 16
_SIGN = np.uint64(1 << 63)


class TopFraction:
    """Keeps a share of the documents; of equal scores at the threshold the first.

    Documents without the score are below all others.
    """

    def __init__(self, config: TopFractionConfig):
        self._config = config

    def keys(self, documents: Iterator[Document], shard: Shard, given: Sequence[Path]) -> Arrays:
        """Return a number for each document that sorts as its score."""
        del shard, given
        return {"order": order_numbers(documents, self._config.score, sign=self._sign)}

    def reduce(self, keys: Sequence[Path], work: Work) -> Decision:
        """Find the score at the threshold, sixteen bits at a time."""
        protected = work.protected | set(self._config.protect)
        own = [
            path
            for path, shard in zip(keys, work.shards, strict=True)
            if shard.source not in protected
        ]
        refuse_unknown(own, "top_fraction", self._config.score)
        scored, total = count_scored(own)
        wanted = number_of_share(total, self._config.fraction)
        least, ties = select_greatest(own, wanted) if wanted else (0, 0)
        report = {
            "documents": total,
            "kept": wanted,
            "least": self._limit(least),
            "without_score": total - scored,
            "without_score_kept": max(wanted - scored, 0),
        }
        return Decision(self._verdicts(keys, own, greatest(own, least, ties)), report)

    def apply(self, documents: Iterator[Document], verdict: Arrays) -> Iterator[Document | Dropped]:
        """Yield the documents of a shard that stay."""
        for document, keep in zip(documents, verdict["keep"].tolist(), strict=True):
            score = document.meta.get(self._config.score)
            if keep:
                yield document
            elif isnan(number_of(score)):
                detail = f"no number as {self._config.score}"
                yield Dropped(document, "top_fraction/no_score", detail)
            else:
                yield Dropped(document, "top_fraction", f"{score}")

    @property
    def _sign(self) -> int:
        return 1 if self._config.keep == "highest" else -1

    def _limit(self, order: int) -> float | None:
        """Return the score at the threshold."""
        score = score_of(order)
        return None if score is None else self._sign * score

    def _verdicts(
        self, keys: Sequence[Path], own: Sequence[Path], chosen: Iterator[np.ndarray]
    ) -> Iterator[Arrays]:
        counted = set(own)
        for path in keys:
            keep = next(chosen) if path in counted else np.ones(_order(path).size, bool)
            yield {"keep": keep}


def refuse_unknown(paths: Sequence[Path], step: str, score: str) -> None:
    """Refuse a score that no document has.

    Args:
      paths: files of `order_numbers`.
      step: the step's kind.
      score: the name in `meta`.

    Raises:
      UserError: there are documents, and none has the score.
    """
    empty = True
    for path in paths:
        order = _order(path)
        if order.any():
            return
        empty = empty and not order.size
    if not empty:
        raise UserError(
            f"{step}.score={score}: no document has such a number in its meta; name the score of "
            "a step before it, or one of raw.meta_keys"
        )


def count_scored(paths: Sequence[Path]) -> tuple[int, int]:
    """Return how many documents have the score, and how many there are.

    Args:
      paths: files of `order_numbers`.
    """
    scored = documents = 0
    for path in paths:
        order = _order(path)
        scored += int(np.count_nonzero(order))
        documents += order.size
    return scored, documents


def greatest(paths: Sequence[Path], least: int, ties: int) -> Iterator[np.ndarray]:
    """Yield, for each file, which of its documents are above `least` or among the first `ties` that
    are equal to it.
    """
    for path in paths:
        order = _order(path)
        equal = order == np.uint64(least)
        yield (order > np.uint64(least)) | (equal & (np.cumsum(equal) <= ties))
        ties -= min(ties, int(equal.sum()))


def order_numbers(documents: Iterator[Document], score: str, *, sign: int = 1) -> np.ndarray:
    """Return uint64 numbers that sort as the documents' scores times `sign`, those without one below
    all.
    """
    values = (document.meta.get(score) for document in documents)
    return sortable(sign * np.array([number_of(value) for value in values], np.float64))


def sortable(values: np.ndarray) -> np.ndarray:
    """Return uint64 numbers in the order of float64 ones, nan below all others."""
    bits = np.where(values == 0, 0.0, values).view(np.uint64)  # -0.0 is 0.0
    order = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return np.where(np.isnan(values), np.uint64(0), order)


def score_of(order: int) -> float | None:
    """Return the score that a number of `sortable` stands for."""
    bits = order ^ (1 << 63) if order >> 63 else ~order & (2**64 - 1)
    return float(np.uint64(bits).view(np.float64)) if order else None


def select_greatest(paths: Sequence[Path], wanted: int) -> tuple[int, int]:
    """Return the wanted-th greatest number of all files, and how many equal to it are wanted.

    Each pass counts the next 16 bits of the numbers that begin as the one that is sought: whatever
    the number of documents, the counts and one file are in memory.
    """
    prefix = 0
    for shift in range(64 - _DIGIT_BITS, -1, -_DIGIT_BITS):
        counts = np.zeros(1 << _DIGIT_BITS, np.int64)
        for path in paths:
            order = _order(path)
            if shift + _DIGIT_BITS < 64:
                order = order[order >> np.uint64(shift + _DIGIT_BITS) == np.uint64(prefix)]
            digits = (order >> np.uint64(shift)) & np.uint64((1 << _DIGIT_BITS) - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=counts.size)
        from_above = np.cumsum(counts[::-1])
        place = int(np.searchsorted(from_above, wanted))
        digit = counts.size - 1 - place
        wanted -= int(from_above[place] - counts[digit])
        prefix = (prefix << _DIGIT_BITS) | digit
    return prefix, wanted


def _order(path: Path) -> np.ndarray:
    return read_arrays(path)["order"]


def number_of_share(documents: int, share: float) -> int:
    """Return how many documents a share is, rounded up; the share is what its decimals say: 0.07 of
    100 documents are 7, where floats have 7.000000000000001.
    """
    return ceil(documents * Fraction(repr(share)))


def number_of(value: object) -> float:
    """Return what `meta` has as a score; nan where it is no number."""
    return float(value) if isinstance(value, int | float) else float("nan")
