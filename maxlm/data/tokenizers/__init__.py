"""Tokenizers behind one interface: SentencePiece, Hugging Face's `tokenizer.json`, tiktoken."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from maxlm.data.tokenizers.files import Kind, TokenizerFiles, read_files
from maxlm.data.tokenizers.hf import open_hf_json
from maxlm.data.tokenizers.sentencepiece import open_sentencepiece
from maxlm.data.tokenizers.stream import StreamDecoder
from maxlm.data.tokenizers.tiktoken import open_tiktoken
from maxlm.data.tokenizers.tokenizer import Tokenizer, replace_surrogates

__all__ = ["StreamDecoder", "Tokenizer", "end_ids", "open_tokenizer", "replace_surrogates"]

OPENERS: dict[Kind, Callable[[TokenizerFiles], Tokenizer]] = {
    "sentencepiece": open_sentencepiece,
    "hf_json": open_hf_json,
    "tiktoken": open_tiktoken,
}


def open_tokenizer(path: Path | str) -> Tokenizer:
    """Open the tokenizer that a path names: a file, or a folder with one.

    Raises:
      UserError: it is missing, damaged, loses text, or says not what ends a document.
    """
    files = read_files(path)
    return OPENERS[files.kind](files)


def end_ids(tokenizer: Tokenizer | None, published: Iterable[int]) -> list[int]:
    """Return the ids that end an answer: a tokenizer's EOS first, then those that came with
    published weights and are special tokens of the tokenizer; all of those without one.
    """
    if tokenizer is None:
        return list(published)
    specials = set(tokenizer.specials.values())
    return list(dict.fromkeys([tokenizer.eos_id, *(one for one in published if one in specials)]))
