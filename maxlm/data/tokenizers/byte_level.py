"""Byte-pair encoding of bytes, by tiktoken: the fastest, and exact wherever a vocabulary allows it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import tiktoken
from tokenizers import models

# How a text is cut into words before pairs are merged, by the name of the encoding that brought it.
PATTERNS = {
    "r50k": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}

LONGEST_RUN = 100_000
"""White space in a row that tiktoken is given: its regular expressions run out of stack, and the
library panics, between 400,000 and 1,000,000 characters of it."""

_RUN = re.compile(r"\s+")


def has_long_run(text: str) -> bool:
    """Return whether a text has more white space in a row than tiktoken stands."""
    return len(text) > LONGEST_RUN and any(
        run.end() - run.start() > LONGEST_RUN for run in _RUN.finditer(text)
    )


def cut_long_runs(text: str) -> Iterator[str]:
    """Yield a text in parts, cut within runs of white space that are too long for tiktoken."""
    start = 0
    for run in _RUN.finditer(text) if len(text) > LONGEST_RUN else ():
        for cut in range(run.start() + LONGEST_RUN, run.end(), LONGEST_RUN):
            yield text[start:cut]
            start = cut
    yield text[start:]


def alphabet() -> dict[str, int]:
    """Return the character that stands for each byte in a byte-level vocabulary: printable Latin-1
    characters for themselves, the other bytes from U+0100 on, in their order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


def to_bytes(token: str, characters: Mapping[str, int]) -> bytes:
    """Return the bytes of a token; one with characters beyond the alphabet stands for itself."""
    try:
        return bytes([characters[character] for character in token])
    except KeyError:
        return token.encode()


def same_by_ranks(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, ignore_merges: bool
) -> dict[bytes, int] | None:
    """Return the ranks with which tiktoken merges as a list of merges says, or None if it may not.

    tiktoken has no list: of neighbours whose joint bytes are a token it joins those of the lowest
    rank, and a word that is a token is not taken apart at all. That is the same if

    1. each token t is the result of one merge (a, b), and ranks rise in the order of the list;
    2. a and b come earlier in the list than t;
    3. the list encodes the text of t as t alone.

    Then tiktoken joins x and y to t only where the list does: within t, no merge of a lower rank is
    left (the lowest comes first), so x and y are what the merges before t make of its text, which
    by 3 and 2 are a and b. Tokens that no merge makes are whole words alone (`ignore_merges`);
    those that the list leaves in two parts tiktoken would join, and there may be none.

    Args:
      vocab: ids by token, in the byte-level alphabet.
      merges: pairs of tokens, first ones first.
      ignore_merges: a word that is a token is not taken apart.
    """
    place = {first + second: index for index, (first, second) in enumerate(merges)}
    made = list(place)
    characters = alphabet()
    in_order = all(vocab[a] < vocab[b] for a, b in itertools.pairwise(made))
    earlier = all(place.get(part, -1) < index for index, pair in enumerate(merges) for part in pair)
    if len(place) != len(merges) or not in_order or not earlier:
        return None
    by_list = models.BPE(vocab=dict(vocab), merges=list(merges))
    if any(len(by_list.tokenize(token)) != 1 for token in made):
        return None
    others = [token for token in vocab if token not in place and len(token) > 1]
    others = [token for token in others if all(sign in characters for sign in token)]
    if ignore_merges and any(len(by_list.tokenize(token)) == 2 for token in others):
        return None
    kept = [*characters, *made, *(others if ignore_merges else ())]
    return {to_bytes(token, characters): vocab[token] for token in kept}


def build_encoding(pattern: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    """Build tiktoken's encoder.

    Raises:
      ValueError: the pattern is no regular expression.
    """
    return tiktoken.Encoding("maxlm", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
