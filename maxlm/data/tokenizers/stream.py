"""Text from token ids as they come: what is shown is whole characters, and is never taken back."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from maxlm.data.tokenizers.vocabulary import Vocabulary


class StreamDecoder:
    """Turns ids into text piece by piece; the bytes of a character that is not whole yet wait."""

    def __init__(self, vocabulary: Vocabulary):
        self._pieces, self._restarts = vocabulary.pieces, vocabulary.restarts
        self._drops_space = vocabulary.prefix is not None
        self._specials = frozenset(vocabulary.specials.values())
        self._at_start = True
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """Return the text that these ids complete.

        Raises:
          ValueError: an id is not in the vocabulary.
        """
        return self._utf8.decode(b"".join(map(self._bytes_of, ids)))

    def end(self) -> str:
        """Return what is left: U+FFFD for bytes that are no whole character."""
        return self._utf8.decode(b"", final=True)

    def _bytes_of(self, token: int) -> bytes:
        if not 0 <= token < len(self._pieces):
            raise ValueError(f"token id {token} is not in [0, {len(self._pieces)})")
        piece = self._pieces[token]
        if not piece:
            if token in self._restarts or token not in self._specials:
                self._at_start = token in self._restarts  # else a word without a token stood there
            return piece
        starts, self._at_start = self._at_start and self._drops_space, False
        return piece[1:] if starts and piece.startswith(b" ") else piece
