"""Token shards: a folder with `index.json` and flat files of tokens in checksummed pages
(docs/data.md).

A shard is a row of 8 KiB pages. A page holds little-endian tokens and, in its last four bytes, the
CRC-32 of the rest seeded with the page's number in the folder, so that a flipped bit, a short file
and a swapped page are all noticed by the read that meets them. Every read checks the pages it
touches: no state, no warm-up, any order.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import struct
import weakref
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maxlm.config.errors import UserError
from maxlm.files import open_regular, read_regular

PAGE_BYTES = 8192
PAYLOAD_BYTES = PAGE_BYTES - 4
INDEX_NAME = "index.json"
SHARD_TOKENS = 2**28  # a shard is closed after the document that passes this size

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ShardEntry(BaseModel):
    """One shard file as the index describes it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    documents: Count
    tokens: Annotated[int, Field(ge=1)]
    sha256: Sha256


class ShardIndex(BaseModel):
    """The contents of `index.json`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal["maxlm-tokens-1"] = "maxlm-tokens-1"
    dtype: Literal["uint16", "uint32"]
    vocab_size: Annotated[int, Field(ge=1, le=2**31)]
    bos_id: Count
    eos_id: Count
    tokenizer: Sha256 = Field(description="fingerprint of the tokenizer that made the tokens")
    documents: Count
    tokens: Count
    shards: list[ShardEntry]

    @property
    def tokens_per_page(self) -> int:
        """Return how many tokens one page holds."""
        return PAYLOAD_BYTES // np.dtype(self.dtype).itemsize

    def pages(self, tokens: int) -> int:
        """Return how many pages `tokens` tokens take."""
        return -(-tokens // self.tokens_per_page)


class ShardWriter:
    """Write documents as shards into an empty folder; the index is written last, by `close`.

    Each document is stored as BOS, its tokens, EOS, and lies in one shard. Where both are one token
    it is stored once, in front: the document before ends there. Leaving a `with` block by an
    exception leaves no index, so a half-written folder is never mistaken for a whole one.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        vocab_size: int,
        bos_id: int,
        eos_id: int,
        tokenizer: str,
        shard_tokens: int = SHARD_TOKENS,
    ):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._vocab_size, self._bos_id, self._eos_id, self._tokenizer = (
            vocab_size,
            bos_id,
            eos_id,
            tokenizer,
        )
        self._dtype = smallest_dtype(vocab_size)
        self._tokens_per_page = PAYLOAD_BYTES // np.dtype(self._dtype).itemsize
        self._shard_tokens = shard_tokens
        self._entries: list[ShardEntry] = []
        self._next_page = 0
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._pending: list[np.ndarray] = []  # tokens that do not fill a page yet
        self._num_pending = self._num_documents = self._num_tokens = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()

    def write_document(self, ids: Iterable[int] | np.ndarray) -> int:
        """Append one document (token ids without BOS and EOS) and return the number of tokens
        stored.
        """
        body = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        if body.size and (body.min() < 0 or body.max() >= self._vocab_size or self._bos_id in body):
            raise ValueError(
                f"token ids must be in [0, {self._vocab_size}) and not BOS ({self._bos_id})"
            )
        end = [] if self._bos_id == self._eos_id else [self._eos_id]
        whole = np.concatenate([[self._bos_id], body, np.asarray(end, np.int64)])
        document = whole.astype(np.dtype(self._dtype).newbyteorder("<"))
        if self._file is None:
            self._file = (self._folder / self._shard_name()).open("wb")
            self._hash = hashlib.sha256()
            self._num_documents = self._num_tokens = 0
        self._pending.append(document)
        self._num_pending += document.size
        self._num_tokens += document.size
        self._num_documents += 1
        if self._num_pending >= 128 * self._tokens_per_page:
            self._write_pages(self._num_pending // self._tokens_per_page)
        if self._num_tokens >= self._shard_tokens:
            self._finish_shard()
        return int(document.size)

    def close(self) -> ShardIndex:
        """Finish the last shard and write the index; return it."""
        self._finish_shard()
        index = ShardIndex(
            dtype=self._dtype,
            vocab_size=self._vocab_size,
            bos_id=self._bos_id,
            eos_id=self._eos_id,
            tokenizer=self._tokenizer,
            documents=sum(entry.documents for entry in self._entries),
            tokens=sum(entry.tokens for entry in self._entries),
            shards=self._entries,
        )
        unfinished = self._folder / (INDEX_NAME + ".unfinished")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(index.model_dump(mode="json"), indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._folder / INDEX_NAME)
        return index

    def _shard_name(self) -> str:
        return f"shard-{len(self._entries):05d}.tokens"

    def _write_pages(self, count: int) -> None:
        assert self._file is not None
        tokens = np.concatenate(self._pending) if self._pending else np.empty(0, self._dtype)
        size = min(tokens.size, count * self._tokens_per_page)
        pages = np.zeros((count, PAGE_BYTES), np.uint8)
        payload = np.zeros(count * self._tokens_per_page, tokens.dtype)
        payload[:size] = tokens[:size]
        pages[:, :PAYLOAD_BYTES] = payload.view(np.uint8).reshape(count, PAYLOAD_BYTES)
        for page in pages:
            page[PAYLOAD_BYTES:] = np.frombuffer(
                struct.pack("<I", _checksum(page.data, self._next_page)), np.uint8
            )
            self._next_page += 1
        self._pending, self._num_pending = [tokens[size:]], tokens.size - size
        self._hash.update(pages.data)
        self._file.write(pages.data)

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        self._write_pages(-(-self._num_pending // self._tokens_per_page))
        self._pending, self._num_pending = [], 0
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._entries.append(
            ShardEntry(
                file=self._shard_name(),
                documents=self._num_documents,
                tokens=self._num_tokens,
                sha256=self._hash.hexdigest(),
            )
        )
        self._file = None


class TokenShards:
    """Random access to the tokens of a folder of shards, as one stream.

    Opening checks the index, that every shard is there and has its size. The files stay open: a
    folder that is replaced while a run reads it does not change under that run.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.index = _read_index(self.folder)
        self._dtype = np.dtype(self.index.dtype).newbyteorder("<")
        self._starts = [0, *itertools.accumulate(shard.tokens for shard in self.index.shards)]
        pages = (self.index.pages(shard.tokens) for shard in self.index.shards)
        self._first_pages = [0, *itertools.accumulate(pages)]
        self._descriptors: list[int] = []
        weakref.finalize(self, _close_all, self._descriptors)
        for number, shard in enumerate(self.index.shards):
            self._descriptors.append(self._open(shard, number))

    def __repr__(self) -> str:
        return f"TokenShards({str(self.folder)!r}, tokens={self.num_tokens})"

    @property
    def num_tokens(self) -> int:
        """Tokens in all shards, BOS and EOS included."""
        return self.index.tokens

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted from those before them: all that do not only start a document."""
        shared = self.index.bos_id == self.index.eos_id
        return self.num_tokens - (min(1, self.num_documents) if shared else self.num_documents)

    @property
    def num_documents(self) -> int:
        """Documents in all shards."""
        return self.index.documents

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the shards' checksums: equal tokens in equal order, equal fingerprint."""
        text = "\n".join([self.index.tokenizer, *(shard.sha256 for shard in self.index.shards)])
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, start: int, count: int) -> np.ndarray:
        """Return tokens [start, start + count) of the stream as int32.

        Raises:
          UserError: a page does not have its checksum, a file became shorter, or a token is not
            below `vocab_size`.
        """
        if not 0 <= start <= start + count <= self.num_tokens:
            raise IndexError(f"tokens [{start}, {start + count}) of {self.num_tokens}")
        out = np.empty(count, np.int32)
        filled = 0
        shard = bisect.bisect_right(self._starts, start) - 1
        while filled < count:
            offset = start + filled - self._starts[shard]
            size = min(count - filled, self._starts[shard + 1] - self._starts[shard] - offset)
            out[filled : filled + size] = self._read_shard(shard, offset, size)
            filled, shard = filled + size, shard + 1
        return out

    def verify(self) -> None:
        """Read every byte and compare each page's and each shard's checksum.

        Raises:
          UserError: a shard is not what the index says.
        """
        for number, shard in enumerate(self.index.shards):
            digest = hashlib.sha256()
            num_pages = self.index.pages(shard.tokens)
            for page in range(0, num_pages, 512):
                data = self._read_pages(number, page, min(512, num_pages - page))
                self._tokens(number, data)
                digest.update(data)
            if digest.hexdigest() != shard.sha256:
                raise self._damaged(number, "its SHA-256 is not the one in the index")

    def _open(self, shard: ShardEntry, number: int) -> int:
        path = self.folder / shard.file
        expected = self.index.pages(shard.tokens) * PAGE_BYTES
        try:
            with open_regular(path) as file:
                descriptor = os.dup(file.fileno())
        except FileNotFoundError:
            raise self._damaged(number, "the file is missing") from None
        except OSError as error:
            cure = "; raise `ulimit -n`, or write larger shards" if error.errno in (23, 24) else ""
            raise UserError(f"{path}: cannot be opened: {error.strerror}{cure}") from None
        size = os.fstat(descriptor).st_size
        if size != expected:
            os.close(descriptor)
            raise self._damaged(number, f"it has {size} bytes, the index says {expected}")
        return descriptor

    def _read_shard(self, shard: int, offset: int, size: int) -> np.ndarray:
        per_page = self.index.tokens_per_page
        first, last = offset // per_page, (offset + size - 1) // per_page
        begin = offset - first * per_page
        return self._tokens(shard, self._read_pages(shard, first, last - first + 1))[
            begin : begin + size
        ]

    def _tokens(self, shard: int, data: bytes) -> np.ndarray:
        """Return the tokens of whole pages; one that is no piece of the tokenizer could be neither
        fed nor decoded.
        """
        pages = np.frombuffer(data, self._dtype).reshape(-1, PAGE_BYTES // self._dtype.itemsize)
        tokens = pages[:, : self.index.tokens_per_page].reshape(-1)
        if tokens.max(initial=0) >= self.index.vocab_size:
            raise self._damaged(
                shard,
                f"it holds token {tokens.max()}, the index says vocab_size={self.index.vocab_size}",
            )
        return tokens

    def _read_pages(self, shard: int, first: int, count: int) -> bytes:
        try:
            data = os.pread(self._descriptors[shard], count * PAGE_BYTES, first * PAGE_BYTES)
        except OSError as error:
            raise self._damaged(shard, f"reading it failed: {error.strerror}") from None
        if len(data) != count * PAGE_BYTES:
            raise self._damaged(shard, "it became shorter while it was open")
        view = memoryview(data)
        for number in range(count):
            page = view[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
            stored = int.from_bytes(page[PAYLOAD_BYTES:], "little")
            if _checksum(page, self._first_pages[shard] + first + number) != stored:
                raise self._damaged(shard, f"page {first + number} does not have its checksum")
        return data

    def _damaged(self, shard: int, what: str) -> UserError:
        path = self.folder / self.index.shards[shard].file
        return UserError(
            f"{path}: damaged token shard: {what}; "
            "copy the folder again from where it is whole, or run: maxlm prepare RUN.yaml --force"
        )


def smallest_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """Return the type that tokens of a vocabulary are stored in."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


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


def _read_index(folder: Path) -> ShardIndex:
    path = folder / INDEX_NAME
    if not path.is_file():
        what = (
            "there is no such folder" if not folder.is_dir() else f"the folder has no {INDEX_NAME}"
        )
        raise UserError(f"{folder}: {what}; run: maxlm prepare RUN.yaml")
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


def _checksum(page: memoryview, number: int) -> int:
    return zlib.crc32(page[:PAYLOAD_BYTES], number & 0xFFFFFFFF)


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
