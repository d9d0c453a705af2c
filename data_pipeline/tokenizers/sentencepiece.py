"""Train a SentencePiece tokenizer that loses nothing: byte fallback, no normalisation, no dummy
prefix.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from data_pipeline.tokenizers.sample import PIECE_CHARACTERS
from maxlm.config.errors import UserError
from maxlm.config.pipeline.tokenizer import SentencePieceSection

THREADS = 4  # fixed: the number is stored in the model, whose bytes must not depend on the machine

# SentencePiece's own marks: no piece holds them, bytes encode them.
_RESERVED = re.compile("[\0\t\u2581\u2585]")


def train_sentencepiece(
    config: SentencePieceSection, texts: Iterable[str], vocab_size: int
) -> dict[str, bytes]:
    """Return the file of a tokenizer with at most `vocab_size` pieces, by its name.

    Raises:
      UserError: the vocabulary is too small for the bytes and characters it must hold.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_without_marks(texts),
            model_writer=model,
            model_type=config.kind,
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # a small text has fewer pieces than asked for
            byte_fallback=True,
            character_coverage=config.character_coverage,
            required_chars="\u2581",  # the space: if it were no piece, it would come back as this character
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=config.split_digits,
            max_sentencepiece_length=config.max_piece_characters,
            allow_whitespace_only_pieces=True,  # indentation is one piece, not many
            max_sentence_length=8 * PIECE_CHARACTERS,
            shuffle_input_sentence=False,
            num_threads=THREADS,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2] or "no text to learn from"
        raise UserError(
            f"model.vocab_size={vocab_size}: no tokenizer can be trained on this text: {reason.strip()}; "
            "a vocabulary holds 256 bytes, 3 special pieces and the common characters: take a larger one, or more text"
        ) from None
    return {config.FILE: model.getvalue()}


def _without_marks(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from filter(None, _RESERVED.split(text))
