"""Train a `tokenizer.json` that loses nothing: byte pairs and WordPiece over the byte-level
alphabet.

The library counts words in hash tables, whose order changes from run to run. Nothing depends on it:
every character has its id before training begins, so that of two pairs of one frequency the same is
joined first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from maxlm.config.errors import UserError
from maxlm.config.pipeline.tokenizer import ByteBpeConfig, WordPieceConfig
from maxlm.data.tokenizers.byte_level import PATTERNS, alphabet
from maxlm.data.tokenizers.files import CONFIG_NAME

BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
CONTINUES = "\u203f"
"""In front of WordPieces that go on within a word: no byte is written so, thus no text spells it."""

# WordPiece looks at every end of a word from every place in it, and has no piece for a word that
# is longer than its limit: the pattern bounds words.
_WORDS = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}{1,64}|\p{N}{1,3}| ?[^\s\p{L}\p{N}]{1,64}|\s{1,64}(?!\S)|\s{1,64}"
)
_LONGEST_WORD = 1000  # bytes: 65 characters have 260 at most


def train_byte_bpe(
    config: ByteBpeConfig, texts: Iterable[str], vocab_size: int
) -> dict[str, bytes]:
    """Return the files of a byte-level BPE tokenizer with at most `vocab_size` pieces, by name.

    Raises:
      UserError: the vocabulary is too small for all bytes.
    """
    specials, alphabet_ = [BOS, EOS], sorted(alphabet())
    _check_size(vocab_size, len(specials) + len(alphabet_))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=specials,
        initial_alphabet=alphabet_,
        show_progress=False,
    )
    pattern = PATTERNS[config.pattern]
    return _files(models.BPE(), trainer, pattern, texts, specials, decoders.ByteLevel())


def train_wordpiece(
    config: WordPieceConfig, texts: Iterable[str], vocab_size: int
) -> dict[str, bytes]:
    """Return the files of a byte-level WordPiece tokenizer with at most `vocab_size` pieces, by name.

    Raises:
      UserError: the vocabulary is too small for all bytes, at a word's start and within it.
    """
    specials, alphabet_ = [UNKNOWN, BOS, EOS], sorted(alphabet())
    within = [CONTINUES + character for character in alphabet_]
    _check_size(vocab_size, len(specials) + len(alphabet_) + len(within))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[*specials, *within],
        initial_alphabet=alphabet_,
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    model = models.WordPiece(
        {UNKNOWN: 0},
        unk_token=UNKNOWN,
        continuing_subword_prefix=CONTINUES,
        max_input_chars_per_word=_LONGEST_WORD,
    )
    decoder = decoders.Sequence([decoders.Replace(CONTINUES, ""), decoders.ByteLevel()])
    return _files(model, trainer, _WORDS, texts, specials, decoder)


def _files(
    model: Any,
    trainer: Any,
    pattern: str,
    texts: Iterable[str],
    specials: Sequence[str],
    decoder: Any,
) -> dict[str, bytes]:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoder
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    # What was given to the trainer only for its place is a piece like any other.
    content["added_tokens"] = [
        token for token in content["added_tokens"] if token["content"] in specials
    ]
    beside = {"bos_token": BOS, "eos_token": EOS, "model_max_length": int(1e30)}
    return {"tokenizer.json": _json(content), CONFIG_NAME: _json(beside)}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def _check_size(vocab_size: int, needed: int) -> None:
    if vocab_size < needed:
        raise UserError(
            f"model.vocab_size={vocab_size}: no tokenizer can be trained: its bytes and special pieces "
            f"are {needed}; take a larger one"
        )
