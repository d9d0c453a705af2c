"""From places of a text to its tokens: which of them are not learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maxlm.data.tokenizers import Tokenizer


def masked_tokens(
    tokenizer: Tokenizer, text: str, ids: Sequence[int], spans: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Return bool (len(ids),): the tokens that stand for a byte of a span, or lie within one.

    Args:
      tokenizer: the one that made the ids.
      text: a whole text.
      ids: its tokens, without BOS and EOS.
      spans: first and end characters, in order, none in another.
    """
    tokens = np.asarray(ids, np.int64)
    before = np.concatenate([[tokenizer.bos_id], tokens])[:-1]
    sizes = tokenizer.bytes_of(tokens, before).astype(np.int64)
    ends = np.cumsum(sizes)
    places = _byte_places(tokenizer, text, spans)
    masked = np.zeros(tokens.size, bool)
    for begin, end in places:
        masked |= (ends - sizes < end) & (ends > begin)
    return masked


def token_spans(masked: np.ndarray) -> np.ndarray:
    """Return uint32 (S, 2): first and end of each run of set bits."""
    edges = np.flatnonzero(np.diff(masked.astype(np.int8), prepend=0, append=0))
    return edges.reshape(-1, 2).astype(np.uint32)


def _byte_places(
    tokenizer: Tokenizer, text: str, spans: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return spans in bytes of what decoding the text's tokens gives.

    Where that is not the text itself (composed characters, a space in front), a character that is
    composed across the edge of a span belongs to it.
    """
    whole = tokenizer.normalise(text)
    if whole == text:
        return [(len(text[:a].encode()), len(text[:b].encode())) for a, b in spans]
    found = []
    for begin, end in spans:
        first = _common(whole, tokenizer.normalise(text[:begin]))
        front = tokenizer.normalise(text[:end])
        last = _common(whole, front)
        last += last < len(front)
        found.append((len(whole[:first].encode()), len(whole[:last].encode())))
    return found


def _common(one: str, two: str) -> int:
    """Return how many characters two texts have in common at their start."""
    length = min(len(one), len(two))
    if one[:length] == two[:length]:
        return length
    return next(place for place in range(length) if one[place] != two[place])
