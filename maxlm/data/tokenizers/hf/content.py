"""What stands in `tokenizer.json`, and which ids no text may give."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from maxlm.data.tokenizers.byte_level import alphabet
from maxlm.data.tokenizers.marked import byte_piece

LARGEST_ID = 2**24


class UnsupportedError(Exception):
    """What of a tokenizer cannot be used; the text says which part, and why."""


class AddedToken(BaseModel):
    """A token beside those of the model."""

    model_config = ConfigDict(strict=True)
    id: int
    content: str
    special: bool = False
    single_word: bool = False
    normalized: bool = True


KINDS = ("BPE", "Unigram", "WordPiece")


class Model(BaseModel):
    """Byte pairs."""

    model_config = ConfigDict(strict=True)
    type: str = "BPE"  # earlier versions of the file do not say
    vocab: dict[str, int]
    merges: list[Any] = []
    byte_fallback: bool = False
    ignore_merges: bool = False
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class HfJson(BaseModel):
    """The file, as far as it is read here; `raw` is all of it."""

    model_config = ConfigDict(strict=True)
    added_tokens: list[AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    model: Model
    raw: dict[str, Any]


class Ids(NamedTuple):
    """All ids by token, and those that no text may give.

    Attributes:
      all: of the model and added.
      specials: the special ones among them.
      bytes: the tokens of single bytes.
      unreachable: tokens that texts must not be merged to: special ones, and bytes where these are
        written out.
    """

    all: Mapping[str, int]
    specials: Mapping[str, int]
    bytes: frozenset[str]
    unreachable: frozenset[str]


def read_raw(data: bytes) -> dict[str, Any]:
    """Read the file as a tree; `model.type` says the kind of its model, one of `KINDS`.

    Raises:
      UnsupportedError: it is damaged, or its model is of another kind.
    """
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnsupportedError(f"not a tokenizer.json (or damaged): {error}") from None
    if not isinstance(raw, dict):
        raise UnsupportedError("not a tokenizer.json (or damaged): it is no JSON object")
    model, kind = raw.get("model"), "missing"
    if isinstance(model, dict):
        kind = model.get("type") or ("Unigram" if isinstance(model.get("vocab"), list) else "BPE")
    if not isinstance(model, dict) or kind not in KINDS:
        known = f"{', '.join(KINDS[:-1])} and {KINDS[-1]}"
        raise UnsupportedError(f"its model is {kind}; {known} can be read")
    return {**raw, "model": {**model, "type": kind}}


def read_added(raw: Mapping[str, Any]) -> list[AddedToken]:
    """Return the tokens beside those of the model.

    Raises:
      UnsupportedError: they are damaged.
    """
    try:
        return TypeAdapter(list[AddedToken]).validate_python(raw.get("added_tokens", []))
    except ValidationError as error:
        raise UnsupportedError(f"not a tokenizer.json (or damaged): {error}") from None


def parse(raw: Mapping[str, Any]) -> HfJson:
    """Check a tree whose model is byte pairs.

    Raises:
      UnsupportedError: it is damaged, or loses text.
    """
    try:
        content = HfJson.model_validate({**raw, "raw": raw})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UnsupportedError(
            f"not a tokenizer.json (or damaged): {where}: {first['msg']}"
        ) from None
    if content.model.continuing_subword_prefix or content.model.end_of_word_suffix:
        raise UnsupportedError("its model marks the inside or the end of words, which loses text")
    return content


def read_ids(content: HfJson, named: set[str], *, byte_level: bool) -> Ids:
    """Collect the ids.

    Args:
      content: the file.
      named: the tokens that start and end documents, special whatever the file says.
      byte_level: tokens are written in the byte-level alphabet.

    Raises:
      UnsupportedError: ids are not one for each token, or a byte has none.
    """
    added = {token.content: token.id for token in content.added_tokens}
    everything = one_each(content.model.vocab, added, named)
    names = named | {token.content for token in content.added_tokens if token.special}
    single = frozenset(alphabet() if byte_level else map(byte_piece, range(256)))
    if lost := (single - everything.keys()) | (single & names):
        raise UnsupportedError(
            f"{len(lost)} of the 256 bytes have no token of their own, so it loses characters"
        )
    specials = {name: number for name, number in everything.items() if name in names}
    return Ids(everything, specials, single, frozenset(names if byte_level else names | single))


def one_each(vocab: Mapping[str, int], added: Mapping[str, int], named: set[str]) -> dict[str, int]:
    """Return the ids of the model's tokens and of the added ones.

    Raises:
      UnsupportedError: they are not one for each token, or one of `named` has none.
    """
    everything = {**vocab, **added}
    numbers = set(everything.values())
    alone = len(numbers) == len(everything) and all(
        vocab.get(name, number) == number for name, number in added.items()
    )
    if not alone or not 0 <= min(numbers, default=-1) <= max(numbers) < LARGEST_ID:
        raise UnsupportedError("it is damaged: its ids are not one for each token")
    if missing := sorted(named - everything.keys()):
        raise UnsupportedError(
            f"it has no token {missing[0]!r}, which is said to start or end documents"
        )
    return everything


def read_merges(model: Model, ids: Ids) -> list[tuple[str, str]]:
    """Return the merges, without those of and to a token that no text may give.

    Raises:
      UnsupportedError: one is no pair of tokens.
    """
    merges = []
    for merge in model.merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and set(map(type, pair)) == {str}):
            raise UnsupportedError(f"it is damaged: its merge {merge!r} is no pair of tokens")
        first, second = pair
        if not ids.unreachable.intersection((first, second, first + second)):
            merges.append((first, second))
    return merges
