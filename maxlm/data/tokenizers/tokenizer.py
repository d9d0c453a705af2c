"""The interface of every tokenizer: texts to token ids and back, and the bytes that each id stands
for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from maxlm.config.errors import UserError
from maxlm.data.tokenizers.files import TokenizerFiles
from maxlm.data.tokenizers.stream import StreamDecoder
from maxlm.data.tokenizers.vocabulary import Vocabulary

Encoder = Callable[[Sequence[str], int], list[list[int]]]
"""encode(texts, num_threads) -> their ids; what special tokens are called is text like any other."""

PROBE = "  if x:\n\treturn '\u00e9\U0001f600\u65e5\\n' \u2581\u2581 \0 12345  \r\n\n"


class Tokenizer:
    """Texts to token ids and back: `decode(encode(text)) == normalise(text)`, which is the text itself
    but for what `normalise` names, if the tokenizer is lossless.

    Attributes:
      path: the file with its vocabulary.
      files: what a folder must hold to be this tokenizer, by name.
      fingerprint: SHA-256 of all that decides about ids.
      vocab_size: how many ids there are.
      bos_id: the token that documents start with. Where a tokenizer has none it is `eos_id`, which
        then stands once between documents.
      eos_id: the token that ends a document.
      specials: ids of the special tokens, by what they are called.
      lossless: every text comes back. If not, bytes are counted of what does.
    """

    def __init__(
        self,
        files: TokenizerFiles,
        vocabulary: Vocabulary,
        encoder: Encoder,
        *,
        fingerprint: str,
        lossless: bool = True,
    ):
        self.path: Path = files.path
        self.files: Mapping[str, bytes] = files.to_keep
        self.fingerprint, self.lossless = fingerprint, lossless
        self.vocab_size = len(vocabulary.pieces)
        self.bos_id, self.eos_id = vocabulary.bos_id, vocabulary.eos_id
        self.specials = vocabulary.specials
        self._vocabulary, self._encoder = vocabulary, encoder
        self._piece_bytes, self._first_bytes = vocabulary.piece_bytes(), vocabulary.first_bytes()
        self._restarts = np.zeros(self.vocab_size, bool)
        self._restarts[list(vocabulary.restarts)] = True

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the token ids of a text, without BOS and EOS; lone surrogates become U+FFFD.

        Args:
          text: any.
          allow_special: what special tokens are called stands for them. If not, it is text like any
            other, and no text gives a special id.
        """
        return self.encode_all([text], allow_special=allow_special)[0]

    def encode_all(
        self, texts: Sequence[str], *, num_threads: int = 1, allow_special: bool = False
    ) -> list[list[int]]:
        """Return the token ids of many texts, worked on by `num_threads` threads."""
        clean = [replace_surrogates(text) for text in texts]
        if not allow_special or not self.specials:
            return self._encoder([self._prefixed(text) for text in clean], num_threads)
        return self._encode_with_specials(clean, num_threads)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; special tokens vanish, bytes that are no UTF-8 become
        U+FFFD.

        Raises:
          ValueError: an id is not in the vocabulary.
        """
        stream = self.stream()
        known = ids if isinstance(ids, Sequence | np.ndarray) else list(ids)
        return stream.push(np.asarray(known).tolist()) + stream.end()

    def piece(self, token: int) -> bytes:
        """Return the bytes that a token stands for; none for special ones."""
        return self._vocabulary.pieces[token]

    def stream(self) -> StreamDecoder:
        """Return what decodes a text as its ids come."""
        return StreamDecoder(self._vocabulary)

    def normalise(self, text: str) -> str:
        """Return what decoding a text's ids gives: lone surrogates are U+FFFD; some published
        tokenizers compose characters (NFC), or take no notice of a space in front; one that is not
        lossless changes more.
        """
        text = replace_surrogates(text)
        if not self.lossless:
            return self.decode(self.encode(text))
        text = self._vocabulary.normal(text) if self._vocabulary.normal else text
        prefix = self._vocabulary.prefix
        return text[1:] if prefix and not prefix.always and text.startswith(" ") else text

    def bytes_of(self, tokens: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Return the UTF-8 bytes that tokens stand for, int32, shaped like them.

        Over the tokens of a text they add up to the bytes of `normalise(text)`.

        Args:
          tokens: ids.
          before: the id in front of each: a space that the encoder put in front of a document is
            none of its bytes.
        """
        if self._vocabulary.prefix is None:
            counted: np.ndarray = self._piece_bytes[tokens]
            return counted
        return np.where(
            self._restarts[before], self._first_bytes[tokens], self._piece_bytes[tokens]
        )

    def check(self, cure: str) -> Tokenizer:
        """Return the tokenizer, which gives a hard text back, or what it leaves of it.

        Raises:
          UserError: it does not.
        """
        text = PROBE + "".join(self.specials)
        ids = np.asarray([self.bos_id, *self.encode(text)])
        num_bytes = self.bytes_of(ids[1:], ids[:-1]).sum()
        exact = self.decode(ids) == self.normalise(text)
        if not exact or num_bytes != len(self.normalise(text).encode()):
            raise UserError(f"{self.path}: the tokenizer changes text; {cure}")
        return self

    def _prefixed(self, text: str) -> str:
        prefix = (
            self._vocabulary.prefix if self.lossless else None
        )  # else the library puts it there
        if prefix is None or not text or (text.startswith(" ") and not prefix.always):
            return text
        return " " + text

    def _encode_with_specials(self, texts: Sequence[str], num_threads: int) -> list[list[int]]:
        names = sorted(self.specials, key=len, reverse=True)  # of two at a place, the longer
        pattern = re.compile(f"({'|'.join(map(re.escape, names))})")
        prefix = self._vocabulary.prefix
        everywhere = prefix is not None and prefix.after_specials
        # Text, special token, text, ...: the first may be empty.
        parts = [pattern.split(text) for text in texts]
        ordinary = [
            self._prefixed(part) if place == 0 or everywhere else part
            for of_text in parts
            for place, part in enumerate(of_text[::2])
        ]
        encoded = iter(self._encoder(ordinary, num_threads))
        out = []
        for of_text in parts:
            ids = list(next(encoded))
            for special in of_text[1::2]:
                ids += [self.specials[special], *next(encoded)]
            out.append(ids)
        return out


def replace_surrogates(text: str) -> str:
    """Return the text with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
