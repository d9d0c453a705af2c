"""WordPiece over the byte-level alphabet, as `maxlm prepare` trains it: every byte has a token, at a
word's start and within it, so nothing is lost and nothing unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from maxlm.data.tokenizers.byte_level import alphabet, to_bytes
from maxlm.data.tokenizers.hf.content import UnsupportedError
from maxlm.data.tokenizers.hf.preparation import read_preparation, sequence
from maxlm.data.tokenizers.tokenizer import Encoder
from maxlm.data.tokenizers.vocabulary import Vocabulary

Raw = Mapping[str, Any]
LONGEST_WORD = 2**31 - 1  # a longer one would be unknown


def read_words(data: bytes) -> Raw | None:
    """Return a `tokenizer.json` of this kind; None: it is of another."""
    try:
        raw = json.loads(data)
        parts = json.dumps(raw["pre_tokenizer"])
        is_words = raw["model"]["type"] == "WordPiece" and '"ByteLevel"' in parts
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return raw if is_words else None


def vocabulary_of(raw: Raw, bos: str, eos: str) -> Vocabulary:
    """Return what its ids stand for.

    Args:
      raw: the file.
      bos, eos: what the tokens are called that start and end a document.

    Raises:
      UnsupportedError: a byte has no token, a text could spell what goes on a word, or it is damaged.
    """
    model, characters = raw["model"], alphabet()
    vocab, inside = model.get("vocab"), model.get("continuing_subword_prefix")
    if not isinstance(vocab, dict) or set(map(type, vocab.values())) != {int}:
        raise UnsupportedError("it is damaged: its vocabulary is none")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise UnsupportedError("it is damaged: its ids are not one for each token")
    if not inside or inside[0] in characters:
        raise UnsupportedError(f"a text can spell {inside!r}, which goes on a word in its model")
    added = raw.get("added_tokens") or []
    special = {token["content"] for token in added if token.get("special")}
    names = special | {bos, eos, model.get("unk_token", "[UNK]")}
    if missing := {bos, eos} - vocab.keys():
        raise UnsupportedError(f"it has no token {min(missing)!r}, which starts or ends documents")
    single = {*characters, *(inside + character for character in characters)}
    if lost := single - (vocab.keys() - names):
        raise UnsupportedError(f"{len(lost)} of its 2 x 256 bytes have no token, so it loses text")
    pieces = [b""] * len(vocab)
    for name, number in vocab.items():
        if name not in names:
            pieces[number] = to_bytes(name.removeprefix(inside), characters)
    specials = {name: vocab[name] for name in names & vocab.keys()}
    return Vocabulary(pieces, specials, bos_id=vocab[bos], eos_id=vocab[eos])


def encoder_of(raw: Raw, vocabulary: Vocabulary) -> Encoder:
    """Return the library's encoding of ordinary text: no text gives a special token.

    Raises:
      UnsupportedError: something that comes before loses text, or the library cannot.
    """
    preparation = read_preparation(raw.get("normalizer"), raw.get("pre_tokenizer"))
    if preparation.normalizers or preparation.prefix or preparation.marks:
        raise UnsupportedError("it changes texts before they are cut into words")
    # No byte is written as a space: what has one in its name is never found.
    hidden = {name: f" {number}" for name, number in vocabulary.specials.items()}
    model = dict(raw["model"])
    model["vocab"] = {hidden.get(name, name): number for name, number in model["vocab"].items()}
    model["unk_token"] = hidden.get(model.get("unk_token", "[UNK]"), " ")
    model["max_input_chars_per_word"] = LONGEST_WORD
    whole = {
        "version": "1.0",
        "pre_tokenizer": sequence(preparation.pre_tokenizers, "pretokenizers"),
        "model": model,
    }
    try:
        loaded = tokenizers.Tokenizer.from_str(json.dumps(whole))
    except Exception as error:  # noqa: BLE001 (the library raises no kinds of its own)
        raise UnsupportedError(f"not a tokenizer.json (or damaged): {error}") from None

    def encode_all(texts: Sequence[str], num_threads: int) -> list[list[int]]:
        del num_threads  # the library takes as many as it likes
        found = loaded.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in found]

    return encode_all
