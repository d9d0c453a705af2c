"""SentencePiece models with byte fallback and no normalisation (as `maxlm prepare` trains them), with
or without a space in front of a text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import sentencepiece

from maxlm.config.errors import UserError
from maxlm.data.tokenizers.files import TokenizerFiles
from maxlm.data.tokenizers.marked import MARK, byte_piece, encode_marks, piece_bytes
from maxlm.data.tokenizers.tokenizer import Tokenizer
from maxlm.data.tokenizers.vocabulary import Prefix, Vocabulary

CURE = "train one with: maxlm prepare RUN.yaml (and another data.tokenizer)"
# A message of protocol buffers goes on with fields that win over earlier ones: here field 3 of
# field 3, normalizer_spec.add_dummy_prefix, false. The space in front is put there by us, once,
# where the library would put one in front of every part of a text.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


def open_sentencepiece(files: TokenizerFiles) -> Tokenizer:
    """Open a SentencePiece model.

    Raises:
      UserError: it is damaged, has no EOS, or does not give every text back.
    """
    model = _load(files, files.main)
    num_pieces = range(model.vocab_size())
    if not any(map(model.is_byte, num_pieces)):
        raise UserError(
            f"{files.path}: the tokenizer has no byte fallback, so it loses characters; {CURE}"
        )
    if model.eos_id() < 0:
        raise UserError(f"{files.path}: the tokenizer has no EOS piece; {CURE}")
    pieces = [_bytes_of(model, piece) for piece in num_pieces]
    has_prefix = b"".join(pieces[piece] for piece in model.encode("x")) == b" x"
    if has_prefix:
        model = _load(files, files.main + NO_DUMMY_PREFIX)

    def encode(texts: Sequence[str], num_threads: int) -> list[list[int]]:
        ids: list[list[int]] = model.encode(list(texts), num_threads=num_threads)
        return ids

    vocabulary = Vocabulary(
        pieces,
        specials={
            model.id_to_piece(piece): piece for piece in num_pieces if model.is_control(piece)
        },
        bos_id=model.bos_id() if model.bos_id() >= 0 else model.eos_id(),
        eos_id=model.eos_id(),
        prefix=Prefix(after_specials=True, always=True) if has_prefix else None,
    )
    marks = [model.piece_to_id(byte_piece(byte)) for byte in MARK.encode()]
    fingerprint = hashlib.sha256(files.main).hexdigest()
    tokenizer = Tokenizer(files, vocabulary, encode_marks(encode, marks), fingerprint=fingerprint)
    return tokenizer.check(CURE)


def _bytes_of(model: sentencepiece.SentencePieceProcessor, piece: int) -> bytes:
    if model.is_control(piece) or model.is_unknown(piece) or model.is_unused(piece):
        return b""
    text: str = model.id_to_piece(piece)
    return bytes([int(text[3:5], 16)]) if model.is_byte(piece) else piece_bytes(text)


def _load(files: TokenizerFiles, proto: bytes) -> sentencepiece.SentencePieceProcessor:
    model = sentencepiece.SentencePieceProcessor()
    try:
        loaded = bool(proto) and model.LoadFromSerializedProto(proto)
    except RuntimeError:
        loaded = False
    if not loaded:
        raise UserError(
            f"{files.path}: not a SentencePiece model (or damaged); restore it, or delete it and run: "
            "maxlm prepare RUN.yaml --force"
        )
    return model
