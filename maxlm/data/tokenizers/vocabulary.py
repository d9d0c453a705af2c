"""What token ids stand for: bytes of text, or nothing, for those that are signs to the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Prefix(NamedTuple):
    """A space that encoders put in front of a text, so that its first word looks like any other.

    Attributes:
      after_specials: also in front of what follows a special token.
      always: also where the text starts with a space itself. If not, `a` and ` a` are the same ids.
    """

    after_specials: bool
    always: bool


class Vocabulary(NamedTuple):
    """A tokenizer's ids.

    Attributes:
      pieces: the bytes that each id stands for; none for special tokens and for unused ids.
      specials: ids of the special tokens, by what they are called.
      bos_id: starts a document; the same as `eos_id` where the tokenizer has no token of its own for
        it.
      eos_id: ends a document.
      prefix: the space that is put in front of a text, if any.
      normal: what is done to a text that is not undone by decoding, if anything.
    """

    pieces: Sequence[bytes]
    specials: Mapping[str, int]
    bos_id: int
    eos_id: int
    prefix: Prefix | None = None
    normal: Callable[[str], str] | None = None

    @property
    def restarts(self) -> frozenset[int]:
        """Special ids after which a text starts anew, with its prefix."""
        all_of_them = self.prefix is not None and self.prefix.after_specials
        return frozenset(self.specials.values() if all_of_them else [self.bos_id])

    def piece_bytes(self) -> np.ndarray:
        """Return int32 (V,): how many bytes each id stands for."""
        return _frozen([len(piece) for piece in self.pieces])

    def first_bytes(self) -> np.ndarray:
        """Return int32 (V,): likewise for the first id of a text, whose prefix is no text."""
        own = self.prefix is not None
        return _frozen([len(piece) - (own and piece[:1] == b" ") for piece in self.pieces])


def _frozen(sizes: Sequence[int]) -> np.ndarray:
    array = np.asarray(sizes, np.int32)
    array.flags.writeable = False
    return array
