"""Tokenizers that write a space as U+2581: a text's own U+2581 is encoded as its bytes."""

from __future__ import annotations

from collections.abc import Sequence

from maxlm.data.tokenizers.tokenizer import Encoder

MARK = "\u2581"


def byte_piece(byte: int) -> str:
    """Return what the piece for a single byte is called."""
    return f"<0x{byte:02X}>"


def piece_bytes(piece: str) -> bytes:
    """Return the UTF-8 that a piece of text stands for."""
    return piece.replace(MARK, " ").encode()


def encode_marks(encode: Encoder, mark_ids: Sequence[int]) -> Encoder:
    """Return an encoder that keeps U+2581 apart from the space.

    Args:
      encode: takes texts without U+2581.
      mark_ids: the ids of its bytes.
    """

    def encode_all(texts: Sequence[str], num_threads: int) -> list[list[int]]:
        parts = [text.split(MARK) for text in texts]
        encoded = iter(encode([part for text in parts for part in text], num_threads))
        out = []
        for text in parts:
            ids = list(next(encoded))
            for _ in text[1:]:
                ids += mark_ids
                ids += next(encoded)
            out.append(ids)
        return out

    return encode_all
