"""Unigram and WordPiece models of `tokenizer.json`, with whatever the file does to a text before: the
library encodes.

Most lose text: they fold case, put white space together, or have no token for a character. What is
left is what decoding gives, and what bytes are counted of. A Unigram with byte fallback may give
every text back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers

from maxlm.data.tokenizers.hf.content import AddedToken, UnsupportedError
from maxlm.data.tokenizers.hf.preparation import Preparation, read_preparation, sequence
from maxlm.data.tokenizers.marked import MARK, byte_piece, piece_bytes
from maxlm.data.tokenizers.tokenizer import Encoder
from maxlm.data.tokenizers.vocabulary import Prefix

Raw = Mapping[str, Any]

HIDDEN = "\0\0"
"""What the names of special tokens begin with for the library, so that no text is one: texts are cut
between two of these characters."""
_CUTS = re.compile("(?<=\0)(?=\0)|(?<=<)(?=0x[0-9A-F]{2}>)")
"""Also within what the token of a byte is called."""
_BYTE = re.compile("<0x([0-9A-F]{2})>")

_CLEAN = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't")),
    *((" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)
"""What a WordPiece decoder with `cleanup` replaces in a token and the space in front of it."""


def names_of(raw: Raw) -> dict[str, int]:
    """Return the ids of the model's tokens.

    Raises:
      UnsupportedError: it is damaged.
    """
    model = raw["model"]
    vocab = model.get("vocab")
    try:
        if model["type"] == "WordPiece":
            return {str(name): int(number) for name, number in vocab.items()}
        names = {name: number for number, (name, _) in enumerate(vocab)}
        if not all(isinstance(name, str) for name in names):
            raise TypeError
    except (AttributeError, OverflowError, TypeError, ValueError):
        raise UnsupportedError("not a tokenizer.json (or damaged): its model's vocab") from None
    return names


def unknown_of(raw: Raw) -> frozenset[str]:
    """Return the token that stands for what the model has no token for, if there is one."""
    model, names = raw["model"], names_of(raw)
    if model["type"] == "WordPiece":
        found = {str(model.get("unk_token", "[UNK]"))}
    else:
        found = {name for name, number in names.items() if number == model.get("unk_id")}
    return frozenset(found & names.keys())


def exact_preparation(raw: Raw, ids: Mapping[str, int]) -> Preparation | None:
    """Return what happens to a text before, if all of it comes back; None if not."""
    if not raw["model"].get("byte_fallback") or not set(map(byte_piece, range(256))) <= ids.keys():
        return None
    try:
        found = read_preparation(raw.get("normalizer"), raw.get("pre_tokenizer"))
    except UnsupportedError:
        return None
    return found if found.marks and not found.byte_level else None


def load(
    raw: Raw,
    added: Sequence[AddedToken],
    specials: Mapping[str, int],
    exact: Preparation | None,
) -> tokenizers.Tokenizer:
    """Load the file for ordinary text: nothing is cut off, filled up, put around, or special.

    Args:
      raw: the file.
      added: tokens beside the model's.
      specials: ids that no text gives.
      exact: what happens to a text before, without the space in front, if nothing is lost.

    Raises:
      UnsupportedError: the library cannot.
    """
    model = dict(raw["model"])
    hidden = {name: f"{HIDDEN} {number}" for name, number in specials.items()}
    if model["type"] == "WordPiece":
        model["vocab"] = {hidden.get(name, name): n for name, n in model["vocab"].items()}
    else:
        model["vocab"] = [[hidden.get(name, name), score] for name, score in model["vocab"]]
    ordinary = [token.content for token in added if token.content not in specials]
    kept = [token for token in raw.get("added_tokens", []) if token["content"] in ordinary]
    whole = {
        "version": "1.0",
        "added_tokens": [
            {**token, "special": False, "lstrip": False, "rstrip": False} for token in kept
        ],
        "normalizer": raw.get("normalizer"),
        "pre_tokenizer": raw.get("pre_tokenizer"),
        "model": model,
    }
    if exact is not None:
        whole["normalizer"] = sequence(exact.normalizers, "normalizers")
        whole["pre_tokenizer"] = sequence(exact.pre_tokenizers, "pretokenizers")
    if exact is None and not unknown_of(raw):
        raise UnsupportedError(
            "its model has no token for what it does not know (unk_id or unk_token), so there are texts that it "
            "cannot encode"
        )
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(whole))
    except Exception as error:  # noqa: BLE001 (the library raises no kinds of its own)
        raise UnsupportedError(f"not a tokenizer.json (or damaged): {error}") from None


def make_encoder(loaded: tokenizers.Tokenizer) -> Encoder:
    """Return an encoder of texts that gives no id of a special token."""

    def encode_all(texts: Sequence[str], num_threads: int) -> list[list[int]]:
        del num_threads  # the library takes as many as it likes
        parts = [_CUTS.split(text) for text in texts]
        flat = [part for of_text in parts for part in of_text]
        encoded = iter(loaded.encode_batch_fast(flat, add_special_tokens=False))
        return [[id_ for _ in of_text for id_ in next(encoded).ids] for of_text in parts]

    return encode_all


def pieces_of(raw: Raw, ids: Mapping[str, int], specials: Mapping[str, int]) -> list[bytes]:
    """Return the bytes that each id stands for.

    Raises:
      UnsupportedError: the file's decoder does something else with its tokens.
    """
    of_piece = _words(raw) if raw["model"]["type"] == "WordPiece" else _marked(raw)
    nothing = specials.keys() | unknown_of(raw)
    added = {token["content"] for token in raw.get("added_tokens", [])}
    pieces = [b""] * (max(ids.values()) + 1)
    for name, number in ids.items():
        if name not in nothing:
            plain = name in added and raw["model"]["type"] != "WordPiece"
            pieces[number] = name.encode() if plain else of_piece(name)
    return pieces


def _marked(raw: Raw) -> Callable[[str], bytes]:
    """Return the bytes of a Unigram's token, in which a space is U+2581."""
    known = {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
    _check_decoder(raw, known)
    has_bytes = bool(raw["model"].get("byte_fallback"))

    def of_piece(name: str) -> bytes:
        byte = _BYTE.fullmatch(name) if has_bytes else None
        return bytes([int(byte[1], 16)]) if byte else piece_bytes(name)

    return of_piece


def _words(raw: Raw) -> Callable[[str], bytes]:
    """Return the bytes of a WordPiece's token: it begins a word, with a space in front, or goes on
    with one.
    """
    _check_decoder(raw, {"WordPiece"})
    decoder = raw.get("decoder") or {}
    inside = decoder.get("prefix", raw["model"].get("continuing_subword_prefix", "##"))
    if not isinstance(inside, str):
        raise UnsupportedError(f"it is damaged: its decoder's prefix is {inside!r}")
    cleans = bool(decoder.get("cleanup", False))

    def of_piece(name: str) -> bytes:
        text = name.removeprefix(inside) if name.startswith(inside) else " " + name
        for before, after in _CLEAN if cleans else ():
            text = text.replace(before, after)
        return text.encode()

    return of_piece


def _check_decoder(raw: Raw, known: set[str]) -> None:
    decoder = raw.get("decoder")
    parts: Any = [decoder] if decoder else []
    if isinstance(decoder, dict):
        parts = decoder.get("decoders", parts)
    for part in parts if isinstance(parts, list) else [parts]:
        kind = part.get("type") if isinstance(part, dict) else part
        if str(kind) not in known:
            raise UnsupportedError(f"its decoder {kind!r} is not known for such a model")


def prefix_of(raw: Raw) -> Prefix | None:
    """Return the space that a text's first token has and the text, of which some is lost, has not."""
    if raw["model"]["type"] == "WordPiece":
        return Prefix(after_specials=False, always=False)
    text = json.dumps([raw.get("normalizer"), raw.get("pre_tokenizer")])
    puts = re.search(r'"prepend_scheme": "(?:always|first)"|"add_prefix_space": true', text)
    written = json.dumps({"prepend": MARK})[1:-1]
    return Prefix(after_specials=False, always=False) if puts or written in text else None
