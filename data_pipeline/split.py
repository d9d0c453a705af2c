"""Train or validation, and in which order: both by a hash of the document's name, so neither
depends on the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from data_pipeline.reading import Document, cut
from maxlm.config.errors import UserError


def split_documents(
    documents: Sequence[Document], validation_fraction: float, max_document_bytes: int
) -> tuple[list[Document], list[Document]]:
    """Return (train, validation), long documents cut into pieces, each split in an order that is
    random but fixed.

    All pieces of a document are in one split. The order matters: a training sequence holds
    neighbours, and an evaluation may read only the first part.

    Raises:
      UserError: there are fewer than two documents.
    """
    if len(documents) < 2:
        raise UserError(
            f"raw: {'only one document is' if documents else 'no document is'} left without copies, and two are "
            "needed, for training and for validation (pieces of one document stay together); give more files in "
            "raw.paths, or its texts as lines of a .jsonl file"
        )
    places = [_fraction("split", document) for document in documents]
    held_out = [place < validation_fraction for place in places]
    if not any(held_out):  # few documents: one of either kind
        held_out[places.index(min(places))] = True
    elif all(held_out):
        held_out[places.index(max(places))] = False
    chosen = list(zip(documents, held_out, strict=True))
    train = (document for document, held in chosen if not held)
    validation = (document for document, held in chosen if held)
    return _shuffled_pieces(train, max_document_bytes), _shuffled_pieces(
        validation, max_document_bytes
    )


def _shuffled_pieces(documents: Iterable[Document], max_bytes: int) -> list[Document]:
    pieces = [piece for document in documents for piece in cut(document, max_bytes)]
    return sorted(pieces, key=lambda piece: _fraction("order", piece))


def _fraction(purpose: str, document: Document) -> float:
    """Return a number in [0, 1) that is a hash of the purpose and the document's name."""
    digest = hashlib.sha256(purpose.encode() + b"\0" + document.name_bytes).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
