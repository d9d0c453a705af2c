"""Open a `tokenizer.json`, without its special tokens: no text gives their ids, be it by the
library's search for added tokens or by merges that spell one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import tokenizers

from maxlm.config.errors import UserError
from maxlm.data.tokenizers.byte_level import alphabet, to_bytes
from maxlm.data.tokenizers.files import CONFIG_NAME, SPECIALS_NAME, TokenizerFiles
from maxlm.data.tokenizers.hf import by_library
from maxlm.data.tokenizers.hf.byte_words import Raw, encoder_of, read_words, vocabulary_of
from maxlm.data.tokenizers.hf.content import (
    HfJson,
    Ids,
    UnsupportedError,
    one_each,
    parse,
    read_added,
    read_ids,
    read_merges,
    read_raw,
)
from maxlm.data.tokenizers.hf.encoder import HfEncoder
from maxlm.data.tokenizers.hf.preparation import Preparation, read_preparation, sequence
from maxlm.data.tokenizers.marked import MARK, byte_piece, encode_marks, piece_bytes
from maxlm.data.tokenizers.tokenizer import Encoder, Tokenizer
from maxlm.data.tokenizers.vocabulary import Vocabulary

CURE = "use its SentencePiece model (tokenizer.model), if it has one, or another tokenizer"


def open_hf_json(files: TokenizerFiles) -> Tokenizer:
    """Open a `tokenizer.json`, with the `tokenizer_config.json` beside it.

    Raises:
      UserError: it is damaged, is of a kind that loses text, or does not say what ends a document.
    """
    try:
        words = read_words(files.main)
        if words is not None:
            return _open_words(files, words).check(CURE)
        raw = read_raw(files.main)
        if raw["model"]["type"] != "BPE":
            return _open_by_library(files, raw).check(CURE)
        content = parse(raw)
        preparation = read_preparation(content.normalizer, content.pre_tokenizer)
        if preparation.byte_level == (preparation.marks and content.model.byte_fallback):
            raise UnsupportedError(
                "it is neither byte-level nor has byte fallback, so it loses characters"
            )
        bos, eos = _document_tokens(files)
        ids = read_ids(content, {bos, eos}, byte_level=preparation.byte_level)
        merges = read_merges(content.model, ids)
        loaded = _load(content, preparation, ids, merges)
    except UnsupportedError as error:
        raise UserError(f"{files.path}: {error}; {CURE}") from None
    vocabulary = Vocabulary(
        _pieces(content, ids, byte_level=preparation.byte_level),
        ids.specials,
        bos_id=ids.all[bos],
        eos_id=ids.all[eos],
        prefix=preparation.prefix,
        normal=preparation.normal,
    )
    encode: Encoder = HfEncoder(loaded, preparation, content, ids, merges).encode_all
    if preparation.marks:
        encode = encode_marks(encode, [ids.all[byte_piece(byte)] for byte in MARK.encode()])
    tokenizer = Tokenizer(files, vocabulary, encode, fingerprint=_fingerprint(files, vocabulary))
    return tokenizer.check(CURE)


def _open_by_library(files: TokenizerFiles, raw: Mapping[str, Any]) -> Tokenizer:
    """Open a file whose model is none of byte pairs.

    Raises:
      UnsupportedError: it is damaged.
    """
    bos, eos = _document_tokens(files)
    added, names = read_added(raw), by_library.names_of(raw)
    ids = one_each(names, {token.content: token.id for token in added}, {bos, eos})
    exact = by_library.exact_preparation(raw, ids)
    unknown = by_library.unknown_of(raw)
    named = {bos, eos} | {token.content for token in added if token.special}
    # With a token for each byte nothing is unknown.
    specials = {name: ids[name] for name in (named | unknown if exact else named - unknown)}
    vocabulary = Vocabulary(
        by_library.pieces_of(raw, ids, specials),
        specials,
        bos_id=ids[bos],
        eos_id=ids[eos],
        prefix=exact.prefix if exact else by_library.prefix_of(raw),
        normal=exact.normal if exact else None,
    )
    encode = by_library.make_encoder(by_library.load(raw, added, specials, exact))
    if exact is not None:
        encode = encode_marks(encode, [ids[byte_piece(byte)] for byte in MARK.encode()])
    fingerprint = _fingerprint(files, vocabulary)
    return Tokenizer(files, vocabulary, encode, fingerprint=fingerprint, lossless=exact is not None)


def _fingerprint(files: TokenizerFiles, vocabulary: Vocabulary) -> str:
    ends = json.dumps({"bos_id": vocabulary.bos_id, "eos_id": vocabulary.eos_id})
    return hashlib.sha256(files.main + ends.encode()).hexdigest()


def _open_words(files: TokenizerFiles, raw: Raw) -> Tokenizer:
    """Open byte-level WordPiece.

    Raises:
      UnsupportedError: it loses text.
    """
    vocabulary = vocabulary_of(raw, *_document_tokens(files))
    fingerprint = _fingerprint(files, vocabulary)
    return Tokenizer(files, vocabulary, encoder_of(raw, vocabulary), fingerprint=fingerprint)


def _document_tokens(files: TokenizerFiles) -> tuple[str, str]:
    """Return what the tokens are called that start and end a document.

    Raises:
      UserError: no file beside it says what ends one.
    """
    said = _names_in(files, SPECIALS_NAME) | _names_in(files, CONFIG_NAME)
    # A model that was made to fill gaps names what stands around its texts.
    end = said.get("eos_token", said.get("sep_token"))
    if end is None:
        example = json.dumps({"bos_token": "<s>", "eos_token": "</s>"})
        raise UserError(
            f"{files.path}: nothing says which token ends a document; put a {CONFIG_NAME} beside it, such as {example}"
        )
    return said.get("bos_token", said.get("cls_token", end)), end


def _names_in(files: TokenizerFiles, name: str) -> dict[str, str]:
    """Return the tokens around documents that a JSON file beside the tokenizer names."""
    try:
        settings = json.loads(files.beside.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{files.path.with_name(name)}: no JSON: {error}; restore it") from None
    found: dict[str, str] = {}
    for key in ("bos_token", "eos_token", "cls_token", "sep_token"):
        value = settings.get(key) if isinstance(settings, dict) else None
        value = value.get("content") if isinstance(value, dict) else value
        found |= {key: value} if isinstance(value, str) else {}
    return found


def _load(
    content: HfJson, preparation: Preparation, ids: Ids, merges: list[tuple[str, str]]
) -> tokenizers.Tokenizer:
    """Load the file for ordinary text: nothing is cut off, filled up, put in front, or special.

    Special tokens keep their ids under names that no text is merged to. Other added tokens do not
    swallow the white space beside them.
    """
    names = {name: f"\0 {ids.specials[name]}" if name in ids.specials else name for name in ids.all}
    raw = content.raw
    ordinary = [
        {**token, "lstrip": False, "rstrip": False}
        for token in raw.get("added_tokens", [])
        if token["content"] not in ids.specials
    ]
    model = {
        **raw["model"],
        "type": "BPE",
        "vocab": {names[name]: number for name, number in ids.all.items()},
        "merges": merges,
        "dropout": None,
        "unk_token": None,
    }
    text = {
        "version": "1.0",
        "added_tokens": ordinary,
        "normalizer": sequence(preparation.normalizers, "normalizers"),
        "pre_tokenizer": sequence(preparation.pre_tokenizers, "pretokenizers"),
        "model": model,
    }
    try:
        loaded = tokenizers.Tokenizer.from_str(json.dumps(text))
    except Exception as error:  # noqa: BLE001 (the library raises no kinds of its own)
        raise UnsupportedError(f"not a tokenizer.json (or damaged): {error}") from None
    for token in ordinary:
        if loaded.token_to_id(token["content"]) != token["id"]:
            raise UnsupportedError(
                f"it is damaged: {token['content']!r} has another id than it says"
            )
    return loaded


def _pieces(content: HfJson, ids: Ids, *, byte_level: bool) -> list[bytes]:
    """Return the bytes that each id stands for; ids that are not there stand for none."""
    pieces = [b""] * (max(ids.all.values()) + 1)
    added = {token.content for token in content.added_tokens}
    characters = alphabet()
    for name, number in ids.all.items():
        if name in ids.specials:
            continue
        if not byte_level:
            is_byte = name in ids.bytes
            pieces[number] = bytes([int(name[3:5], 16)]) if is_byte else piece_bytes(name)
        else:
            pieces[number] = name.encode() if name in added else to_bytes(name, characters)
    return pieces
