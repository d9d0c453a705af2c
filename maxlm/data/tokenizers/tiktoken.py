"""tiktoken files: a line `base64 rank` for each token; a JSON file beside them says the rest."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Sequence

import tiktoken
from pydantic import BaseModel, ConfigDict, ValidationError

from maxlm.config.errors import UserError
from maxlm.data.tokenizers.byte_level import PATTERNS, build_encoding, cut_long_runs
from maxlm.data.tokenizers.files import KEPT_NAMES, SIDECAR_SUFFIX, TokenizerFiles, sidecar_of
from maxlm.data.tokenizers.tokenizer import Tokenizer
from maxlm.data.tokenizers.vocabulary import Vocabulary

LARGEST_ID = 2**24
EXAMPLE = (
    '{"pattern": "cl100k", "special_tokens": {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001}, '
    '"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}'
)


class Sidecar(BaseModel):
    """What a tiktoken file does not say.

    Attributes:
      pattern: how texts are cut into words: a regular expression, or the name of a known one.
      special_tokens: their ids.
      bos_token: starts a document; none: the one that ends it stands between documents.
      eos_token: ends a document.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    pattern: str
    special_tokens: dict[str, int]
    bos_token: str | None = None
    eos_token: str


def open_tiktoken(files: TokenizerFiles) -> Tokenizer:
    """Open a tiktoken file and the JSON file beside it.

    Raises:
      UserError: one of them is missing, damaged, or does not fit the other.
    """
    ranks, sidecar = _read_ranks(files), _read_sidecar(files)
    encoding = _build(files, ranks, sidecar)
    specials = sidecar.special_tokens
    pieces = [b""] * (max(*ranks.values(), *specials.values()) + 1)
    for piece, rank in ranks.items():
        pieces[rank] = piece
    vocabulary = Vocabulary(
        pieces,
        specials,
        bos_id=specials[sidecar.bos_token or sidecar.eos_token],
        eos_id=specials[sidecar.eos_token],
    )
    settings = json.dumps(sidecar.model_dump(mode="json"), sort_keys=True)
    fingerprint = hashlib.sha256(files.main + settings.encode()).hexdigest()

    def encode(texts: Sequence[str], num_threads: int) -> list[list[int]]:
        parts = [list(cut_long_runs(text)) for text in texts]
        flat = list(itertools.chain.from_iterable(parts))
        encoded = iter(encoding.encode_ordinary_batch(flat, num_threads=num_threads))
        return [
            list(itertools.chain.from_iterable(itertools.islice(encoded, len(of_text))))
            for of_text in parts
        ]

    return Tokenizer(files, vocabulary, encode, fingerprint=fingerprint).check("restore the file")


def _read_ranks(files: TokenizerFiles) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    lines = files.main.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise UserError(
                f"{files.path}: line {number} is no token in base64 and its rank; restore the file"
            ) from None
    one_each = len(ranks) == len(lines) == len(set(ranks.values()))
    if not one_each or not 0 <= min(ranks.values()) <= max(ranks.values()) < LARGEST_ID:
        raise UserError(
            f"{files.path}: damaged: a token or a rank is there twice; restore the file"
        )
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    if missing:
        raise UserError(
            f"{files.path}: {missing} of the 256 bytes have no token, so it loses characters; restore the file, or "
            "use another tokenizer"
        )
    return ranks


def _read_sidecar(files: TokenizerFiles) -> Sidecar:
    path, data = sidecar_of(files.path), files.beside.get(KEPT_NAMES["tiktoken"] + SIDECAR_SUFFIX)
    if data is None:
        raise UserError(
            f"{path}: missing; a tiktoken file does not say how texts are cut into words, nor its special tokens; "
            f"write, for example, {EXAMPLE}; known patterns are {', '.join(PATTERNS)}, others a regular expression"
        )
    try:
        sidecar = Sidecar.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UserError(f"{path}: {where}: {first['msg']}; write, for example, {EXAMPLE}") from None
    for key in ("bos_token", "eos_token"):
        name = getattr(sidecar, key)
        if name is not None and name not in sidecar.special_tokens:
            raise UserError(f"{path}: {key}={name!r} is none of its special_tokens; add it to them")
    return sidecar


def _build(files: TokenizerFiles, ranks: dict[bytes, int], sidecar: Sidecar) -> tiktoken.Encoding:
    path, ids = sidecar_of(files.path), list(sidecar.special_tokens.values())
    taken = sorted(set(ids) & set(ranks.values()))
    if taken or len(set(ids)) != len(ids) or not 0 <= min(ids) <= max(ids) < LARGEST_ID:
        what = f"{taken[0]} is a token of {files.path.name}" if taken else "two are the same"
        raise UserError(f"{path}: special_tokens: ids must be others than all: {what}")
    pattern = PATTERNS.get(sidecar.pattern, sidecar.pattern)
    try:
        # What no word matches is a word by itself: tiktoken would leave it out.
        return build_encoding(rf"(?:{pattern})|[\s\S]", ranks)
    except ValueError as error:
        known = ", ".join(PATTERNS)
        raise UserError(
            f"{path}: pattern={sidecar.pattern!r} is no regular expression ({error}); use one of {known}, or mend it"
        ) from None
