"""Encoding with `tokenizer.json`: by tiktoken where there is much text and the ids are the same,
else by `tokenizers`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np
import tiktoken
import tokenizers

from maxlm.data.tokenizers.byte_level import (
    alphabet,
    build_encoding,
    has_long_run,
    same_by_ranks,
    to_bytes,
)
from maxlm.data.tokenizers.hf.content import HfJson, Ids
from maxlm.data.tokenizers.hf.preparation import Preparation

MUCH_TEXT = 500_000
"""Characters from which on the second or so that tiktoken takes to be prepared is worth it."""


class HfEncoder:
    """Encodes ordinary text.

    Args:
      loaded: the library's tokenizer.
      preparation: what it does to a text before pairs are merged.
      content: the file.
      ids: all ids.
      merges: pairs of tokens, first ones first.
    """

    def __init__(
        self,
        loaded: tokenizers.Tokenizer,
        preparation: Preparation,
        content: HfJson,
        ids: Ids,
        merges: Sequence[tuple[str, str]],
    ):
        self._loaded, self._preparation, self._model = loaded, preparation, content.model
        self._ids, self._merges = ids, merges
        added = [token for token in content.added_tokens if token.content not in ids.specials]
        names = sorted((token.content for token in added), key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(map(re.escape, names))})") if names else None
        # Whole words alone, or found in the text as it is normalised: left to the library.
        self._easily_found = not any(
            token.single_word or (token.normalized and preparation.normal) for token in added
        )

    def encode_all(self, texts: Sequence[str], num_threads: int) -> list[list[int]]:
        """Return the ids of texts, worked on by `num_threads` threads."""
        if sum(map(len, texts)) < MUCH_TEXT or self.fast is None:
            return self._encode(texts, num_threads)
        fast = self._encode_fast(self.fast, texts, num_threads)
        left = [text for text, ids in zip(texts, fast, strict=True) if ids is None]
        others = iter(self._encode(left, num_threads))
        return [next(others) if ids is None else ids for ids in fast]

    @functools.cached_property
    def fast(self) -> tiktoken.Encoding | None:
        """tiktoken's encoder with the same ids; None if there is none."""
        pattern = self._preparation.pattern
        if pattern is None or not self._easily_found:
            return None
        vocab = {name: n for name, n in self._model.vocab.items() if name not in self._ids.specials}
        ranks = same_by_ranks(vocab, self._merges, ignore_merges=self._model.ignore_merges)
        try:
            return build_encoding(pattern, ranks) if ranks is not None else None
        except ValueError:  # a regular expression that only the other library knows
            return None

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        """How many bytes each id of the model stands for."""
        sizes, characters = np.zeros(max(self._ids.all.values()) + 1, np.int64), alphabet()
        for name, number in self._model.vocab.items():
            sizes[number] = len(to_bytes(name, characters))
        return sizes

    def _encode(self, texts: Sequence[str], num_threads: int) -> list[list[int]]:
        if num_threads == 1 or len(texts) <= 1:
            return [self._loaded.encode(text, add_special_tokens=False).ids for text in texts]
        batch = self._loaded.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def _encode_fast(
        self, fast: tiktoken.Encoding, texts: Sequence[str], num_threads: int
    ) -> list[list[int] | None]:
        """Return the ids of texts; None for those that tiktoken cannot encode or leaves some of out."""
        taken = [not has_long_run(text) for text in texts]
        parts = [self._parts(text) for text, take in zip(texts, taken, strict=True) if take]
        ordinary = [part for of_text in parts for part in of_text[::2]]
        encoded = iter(fast.encode_ordinary_batch(ordinary, num_threads=num_threads))
        joined = iter([self._joined(of_text, encoded) for of_text in parts])
        return [next(joined) if take else None for take in taken]

    def _parts(self, text: str) -> list[str]:
        """Return text, added token, text, ...; the first may be empty."""
        parts = self._added.split(text) if self._added else [text]
        normal = self._preparation.normal
        return [normal(part) if normal and not part.isascii() else part for part in parts]

    def _joined(self, parts: Sequence[str], encoded: Iterator[list[int]]) -> list[int] | None:
        """Put a text's ids together; None if a character of it is in none of them.

        Between the words that a pattern matches the other library keeps what tiktoken drops.
        """
        ids: list[int] = []
        num_bytes = 0
        for place, part in enumerate(parts):
            if place % 2:
                ids.append(self._ids.all[part])
                continue
            own = next(encoded)
            num_bytes += len(part.encode()) - int(self._sizes[own].sum())
            ids += own
        return None if num_bytes else ids
