"""Train a SentencePiece tokenizer that loses nothing: BPE with byte fallback, no normalisation, no
dummy prefix.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping

import sentencepiece

from maxlm.config.errors import UserError

SAMPLE_BYTES = 16_000_000
PIECE_CHARACTERS = 4096
THREADS = 4  # fixed: the number is stored in the model, whose bytes must not depend on the machine

# SentencePiece's own marks: no piece holds them, bytes encode them.
_RESERVED = re.compile("[\0\t\u2581\u2585]")


def train_tokenizer(
    sources: Mapping[str, Iterable[str]], weights: Mapping[str, float], vocab_size: int
) -> bytes:
    """Return the model file of a tokenizer with at most `vocab_size` pieces.

    Args:
      sources: texts of each source in a random order; of each those at the start are learned from,
        shared out by `weights`.

    Raises:
      UserError: the vocabulary is too small for the bytes and characters it must hold.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sample(sources, weights),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # a small text has fewer pieces than asked for
            byte_fallback=True,
            character_coverage=0.9995,
            required_chars="\u2581",  # the space: if it were no piece, it would come back as this character
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
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
    return model.getvalue()


def _sample(sources: Mapping[str, Iterable[str]], weights: Mapping[str, float]) -> Iterator[str]:
    for name, texts in sources.items():
        budget = sample_bytes(name, weights)
        for piece in _pieces(texts):
            yield from filter(None, _RESERVED.split(piece))
            budget -= len(piece.encode())
            if budget <= 0:
                break


def sample_bytes(name: str, weights: Mapping[str, float]) -> float:
    """Return how many bytes of a source are learned from."""
    return SAMPLE_BYTES * weights[name] / sum(weights.values())


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), PIECE_CHARACTERS):
            yield text[start : start + PIECE_CHARACTERS]
