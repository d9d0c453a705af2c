"""Train an n-gram model of texts on disk, in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.ngrams.counting import count
from data_pipeline.ngrams.model import Header, NgramModel
from data_pipeline.ngrams.smoothing import Smoothing
from data_pipeline.ngrams.words import Vocabulary, WordForm
from maxlm.config.errors import UserError

LEAST_HELD_OUT = 10
"""Documents: percentiles of fewer say nothing."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
      order: length of the longest n-grams.
      form: how a text is cut into words.
      vocabulary: words that are kept, with the marks.
      held_out: share of documents of which the percentiles of perplexity are.
      memory_bytes: for sorting.
    """

    order: int = 5
    form: WordForm = "normalised"
    vocabulary: int = 200_000
    held_out: float = 0.02
    memory_bytes: int = 2**30


class Trained(NamedTuple):
    """A model, and the lengths whose discounts could not be estimated."""

    model: NgramModel
    without_estimate: list[int]


def train(texts: Iterable[str], recipe: Recipe, folder: Path) -> Trained:
    """Return the model of texts; its arrays are files in a folder, and go with it.

    Args:
      texts: gone through three times.

    Raises:
      UserError: too few texts.
    """
    vocabulary = Vocabulary.of(_part(texts, recipe, held_out=False), recipe.form, recipe.vocabulary)
    if len(vocabulary.words) <= 3:
        raise UserError("there are no words to train on; give more texts")
    sentences = (
        sentence
        for text in _part(texts, recipe, held_out=False)
        for sentence in vocabulary.encode(text, recipe.form)
    )
    counts = count(
        sentences,
        folder,
        order=recipe.order,
        bits=vocabulary.bits,
        memory_bytes=recipe.memory_bytes,
    )
    smoothing = Smoothing(counts, len(vocabulary.words), folder)
    header = Header(
        order=recipe.order,
        form=recipe.form,
        discounts=[found.tolist() for found in smoothing.discounts],
    )
    model = NgramModel(header, vocabulary, smoothing.levels)
    found = np.array([model.perplexity(text) for text in _part(texts, recipe, held_out=True)])
    if found.size < LEAST_HELD_OUT:
        text = f"{found.size} documents are held out, of {LEAST_HELD_OUT} at least"
        raise UserError(f"{text}; give more texts, or a greater --held-out")
    percentiles = np.percentile(found, np.arange(101)).tolist()
    model.header = header.model_copy(update={"percentiles": percentiles})
    return Trained(
        model, [place for place, is_so in enumerate(smoothing.estimated, 1) if not is_so]
    )


def _part(texts: Iterable[str], recipe: Recipe, *, held_out: bool) -> Iterator[str]:
    """Yield the texts that are held out, or the others: a hash of the text decides."""
    for text in texts:
        digest = hashlib.blake2b(text.encode(), digest_size=7, person=b"ngrams").digest()
        if (int.from_bytes(digest, "big") / 2**56 < recipe.held_out) == held_out:
            yield text
