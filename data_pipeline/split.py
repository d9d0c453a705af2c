"""Train or validation, and in which order: both by a hash of the document's name, so neither depends on the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from data_pipeline.documents import Document
from maxlm.config.errors import UserError


def split_documents(documents: Sequence[Document], validation_fraction: float) -> tuple[list[Document], list[Document]]:
    """Return (train, validation), each in an order that is random but fixed.

    The order matters: a training sequence holds neighbours, and an evaluation may read only the first part.

    Raises:
      UserError: there are fewer than two documents.
    """
    if len(documents) < 2:
        raise UserError(
            "raw: there is only one document, so none can be held out for validation; give more files in raw.paths, "
            "or a smaller raw.max_document_bytes, which cuts it into several"
        )
    ordered = sorted(documents, key=lambda document: _fraction("order", document))
    held_out = {document.name for document in ordered if _fraction("split", document) < validation_fraction}
    if not held_out or len(held_out) == len(ordered):  # few documents: one of either kind
        ranked = sorted(ordered, key=lambda document: _fraction("split", document))
        held_out = {document.name for document in (ranked[:-1] if held_out else ranked[:1])}
    train = [document for document in ordered if document.name not in held_out]
    return train, [document for document in ordered if document.name in held_out]


def _fraction(purpose: str, document: Document) -> float:
    """Return a number in [0, 1) that is a hash of the purpose and the document's name."""
    digest = hashlib.sha256(f"{purpose}\0{document.name}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
