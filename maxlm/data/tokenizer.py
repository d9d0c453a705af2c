"""A SentencePiece tokenizer that gives every text back exactly.

The model must have byte fallback, identity normalisation and no dummy prefix (as `maxlm prepare`
trains it).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from maxlm.config.errors import UserError
from maxlm.files import read_regular

# SentencePiece writes spaces as this character, so the character itself is encoded as its bytes.
SPACE = "\u2581"


class Tokenizer:
    """Text to token ids and back: `decode(encode(text)) == text` for every text without lone
    surrogates.

    Attributes:
      proto: the bytes of its file.
      fingerprint: their SHA-256.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            self.proto = read_regular(self.path)
        except FileNotFoundError:
            raise UserError(
                f"{self.path}: there is no such tokenizer; run: maxlm prepare RUN.yaml"
            ) from None
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be read: {error.strerror}; data.tokenizer must name a file"
            ) from None
        self.fingerprint = hashlib.sha256(self.proto).hexdigest()
        self._model = _load(self.path, self.proto)
        self.vocab_size: int = self._model.vocab_size()
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        self.token_bytes = self._measure_pieces()
        self._check()
        self._space_ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without BOS and EOS; lone surrogates become U+FFFD."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str], *, num_threads: int = 1) -> list[list[int]]:
        """Return the token ids of many texts, worked on by `num_threads` threads."""
        parts = [replace_surrogates(text).split(SPACE) for text in texts]
        encoded = iter(
            self._model.encode([part for text in parts for part in text], num_threads=num_threads)
        )
        out = []
        for text in parts:
            ids = list(next(encoded))
            for _ in text[1:]:
                ids += self._space_ids
                ids += next(encoded)
            out.append(ids)
        return out

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; BOS and EOS vanish, bytes that are no UTF-8 become U+FFFD."""
        text: str = self._model.decode([int(token) for token in ids])
        return text

    def _check(self) -> None:
        cure = "train one with: maxlm prepare RUN.yaml (and another data.tokenizer)"
        if min(self.bos_id, self.eos_id) < 0:
            raise UserError(f"{self.path}: the tokenizer has no BOS or no EOS piece; {cure}")
        probe = "  if x:\n\treturn '\u00e9\U0001f600\\n'  \r\n\n"
        if not any(self._model.is_byte(piece) for piece in range(self.vocab_size)):
            raise UserError(
                f"{self.path}: the tokenizer has no byte fallback, so it loses characters; {cure}"
            )
        ids = self._model.encode(probe)
        if self._model.decode(ids) != probe or self.token_bytes[ids].sum() != len(probe.encode()):
            raise UserError(
                f"{self.path}: the tokenizer changes text (normalisation or a dummy prefix); {cure}"
            )

    def _measure_pieces(self) -> np.ndarray:
        """Return int32 (V,): the UTF-8 bytes each piece stands for; 0 for BOS, EOS and other
        specials.
        """
        sizes = np.zeros(self.vocab_size, np.int32)
        for piece in range(self.vocab_size):
            if self._model.is_byte(piece):
                sizes[piece] = 1
            elif not (
                self._model.is_control(piece)
                or self._model.is_unknown(piece)
                or self._model.is_unused(piece)
            ):
                sizes[piece] = len(self._model.id_to_piece(piece).replace(SPACE, " ").encode())
        sizes.flags.writeable = False
        return sizes


def replace_surrogates(text: str) -> str:
    """Return the text with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _load(path: Path, proto: bytes) -> sentencepiece.SentencePieceProcessor:
    model = sentencepiece.SentencePieceProcessor()
    try:
        loaded = bool(proto) and model.LoadFromSerializedProto(proto)
    except RuntimeError:
        loaded = False
    if not loaded:
        raise UserError(
            f"{path}: not a SentencePiece model (or damaged); restore it, or delete it and run: "
            "maxlm prepare RUN.yaml --force"
        )
    return model
