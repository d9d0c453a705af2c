"""Settings of the tokenizers that `maxlm prepare` trains, a section a kind."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from maxlm.config.section import PositiveInt, Section, kind_or


class TrainedTokenizerSection(Section):
    """The settings of a kind of tokenizer; the base of all.

    Attributes:
      kind: the name of the kind.
      FILE: what its file is called in a folder that is a tokenizer.
    """

    FILE: ClassVar[str]

    kind: str
    sample_mb: Annotated[int, Field(ge=1, le=10_000)] = Field(
        16,
        description="MB of training text that it learns from, taken at random from the sources by their weights; "
        "the process that leads holds them in memory",
    )


class SentencePieceSection(TrainedTokenizerSection):
    """Pieces of characters, with bytes for characters that are none (SentencePiece,
    arXiv:1808.06226).
    """

    FILE = "tokenizer.model"

    character_coverage: Annotated[float, Field(gt=0.9, le=1)] = Field(
        0.9995, description="share of the characters that are pieces; the others are bytes"
    )
    split_digits: bool = Field(True, description="every digit is a piece of its own")
    max_piece_characters: Annotated[int, Field(ge=1, le=512)] = 16


class BpeConfig(SentencePieceSection):
    """Byte-pair encoding of characters (arXiv:1508.07909) with byte fallback."""

    kind: Literal["bpe"] = "bpe"


class UnigramConfig(SentencePieceSection):
    """A unigram language model of pieces (arXiv:1804.10959) with byte fallback.

    Training takes about ten times as long as `bpe`.
    """

    kind: Literal["unigram"] = "unigram"


class ByteBpeConfig(TrainedTokenizerSection):
    """Byte-pair encoding of bytes, within words that a regular expression cuts."""

    FILE = "tokenizer.json"

    kind: Literal["byte_bpe"] = "byte_bpe"
    pattern: Literal["r50k", "cl100k", "o200k"] = Field(
        "cl100k", description="how texts are cut into words, by the name of what brought it"
    )
    min_frequency: PositiveInt = Field(2, description="how often a pair must stand to be joined")


class WordPieceConfig(TrainedTokenizerSection):
    """WordPiece over bytes: of a word the longest piece in front, again and again
    (arXiv:1609.08144, 4.1). The pieces are found as those of `byte_bpe` are.
    """

    FILE = "tokenizer.json"

    kind: Literal["wordpiece"] = "wordpiece"
    min_frequency: PositiveInt = Field(2, description="how often a pair must stand to be joined")


TrainedTokenizer = Annotated[
    BpeConfig | UnigramConfig | ByteBpeConfig | WordPieceConfig,
    Field(discriminator="kind"),
    kind_or("bpe"),
]
"""What `maxlm prepare` trains if `data.tokenizer` is not there."""
