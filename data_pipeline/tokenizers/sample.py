"""The texts that a tokenizer learns from: of each source as much as its weight says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from data_pipeline.documents import Document

PIECE_CHARACTERS = 4096
"""Longer texts are cut: a trainer holds one at a time, and SentencePiece leaves long ones out."""


def sample_bytes(name: str, weights: Mapping[str, float], sample_mb: int) -> float:
    """Return how many bytes of a source are learned from."""
    return sample_mb * 1e6 * weights[name] / sum(weights.values())


def take_sample(
    sources: Mapping[str, Iterable[str]], weights: Mapping[str, float], sample_mb: int
) -> Iterator[str]:
    """Yield texts of each source from its start, until there are as many bytes as its weight says.

    Args:
      sources: texts of each source in a random order.
      weights: of each source.
      sample_mb: MB of all together.
    """
    for name, texts in sources.items():
        budget = sample_bytes(name, weights, sample_mb)
        for piece in _pieces(texts):
            yield piece
            budget -= len(piece.encode())
            if budget <= 0:
                break


def texts_of(documents: Iterable[Document]) -> Iterator[str]:
    """Yield the texts of documents."""
    return (document.text for document in documents)


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), PIECE_CHARACTERS):
            yield text[start : start + PIECE_CHARACTERS]
