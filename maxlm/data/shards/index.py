"""A folder of token shards: pages with checksums, and the index that says what there is
(docs/data.md).

A shard is a row of 8 KiB pages. A page holds little-endian tokens and, in its last four bytes, the
CRC-32 of the rest seeded with the page's number in the folder, so that a flipped bit, a short file
and a swapped page are all noticed by the read that meets them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maxlm.config.errors import UserError
from maxlm.files import read_regular

PAGE_BYTES = 8192
PAYLOAD_BYTES = PAGE_BYTES - 4
INDEX_NAME = "index.json"

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class MaskEntry(BaseModel):
    """The file of a shard's tokens that are not learned, as the index describes it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    tokens: Annotated[int, Field(ge=1)]
    sha256: Sha256


class ShardEntry(BaseModel):
    """One shard file as the index describes it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    documents: Count
    tokens: Annotated[int, Field(ge=1)]
    sha256: Sha256
    masked: MaskEntry | None = Field(None, description="absent where every token is learned")


class ShardIndex(BaseModel):
    """The contents of `index.json`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal["maxlm-tokens-1"] = "maxlm-tokens-1"
    dtype: Literal["uint16", "uint32"]
    vocab_size: Annotated[int, Field(ge=1, le=2**31 - 1)]
    bos_id: Count
    eos_id: Count
    tokenizer: Sha256 = Field(description="fingerprint of the tokenizer that made the tokens")
    documents: Count
    tokens: Count
    shards: list[ShardEntry]

    @property
    def masked(self) -> int:
        """Return how many tokens are not learned."""
        return sum(shard.masked.tokens for shard in self.shards if shard.masked)

    @property
    def tokens_per_page(self) -> int:
        """Return how many tokens one page holds."""
        return tokens_per_page(self.dtype)

    def pages(self, tokens: int) -> int:
        """Return how many pages `tokens` tokens take."""
        return -(-tokens // self.tokens_per_page)


def tokens_per_page(dtype: str) -> int:
    """Return how many tokens of a type one page holds."""
    return PAYLOAD_BYTES // np.dtype(dtype).itemsize


def smallest_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """Return the type that tokens of a vocabulary are stored in."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def page_checksum(page: memoryview, number: int) -> int:
    """Return the checksum of a page, which is seeded with its number in the folder."""
    return zlib.crc32(page[:PAYLOAD_BYTES], number & 0xFFFFFFFF)


@contextmanager
def _index_mistakes(path: Path) -> Iterator[None]:
    cure = "copy the folder again from where it is whole, or run: maxlm prepare RUN.yaml --force"
    try:
        yield
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}"
            for problem in error.errors()[:5]
        )
        raise UserError(f"{path}: not a token index: {problems}; {cure}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}; {cure}") from None


def read_index(folder: Path) -> ShardIndex:
    """Read a folder's index.

    Raises:
      UserError: it is missing or damaged, or contradicts itself.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        what = (
            "there is no such folder" if not folder.is_dir() else f"the folder has no {INDEX_NAME}"
        )
        # A prepared source is left as it is, though a split is missing.
        force = " --force" if (folder.parent / "manifest.json").is_file() else ""
        raise UserError(f"{folder}: {what}; run: maxlm prepare RUN.yaml{force}")
    with _index_mistakes(path):
        index = ShardIndex.model_validate_json(read_regular(path))
    same = (
        index.dtype == smallest_dtype(index.vocab_size)
        and max(index.bos_id, index.eos_id) < index.vocab_size
    )
    totals = (
        sum(shard.documents for shard in index.shards),
        sum(shard.tokens for shard in index.shards),
    )
    if not same or totals != (index.documents, index.tokens):
        raise UserError(
            f"{path}: its numbers contradict each other (documents={index.documents} and tokens={index.tokens}, "
            f"summed over shards {totals[0]} and {totals[1]}; bos_id={index.bos_id}, eos_id={index.eos_id}, "
            f"vocab_size={index.vocab_size}, dtype={index.dtype}); restore it, or run: maxlm prepare RUN.yaml --force"
        )
    return index
