"""Write token shards: one file after the other into a folder, or each by itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from maxlm.data.shards.index import (
    INDEX_NAME,
    ShardEntry,
    ShardIndex,
    smallest_dtype,
    tokens_per_page,
)
from maxlm.data.shards.masks import MaskFile, mask_name, mask_pages
from maxlm.data.shards.pages import as_pages
from maxlm.files import write_whole

SHARD_TOKENS = 2**28  # a shard is closed after the document that passes this size
_PAGES_AT_A_TIME = 128


class ShardFile:
    """One shard, written page by page.

    Args:
      path: of the file; it is not whole before `close`.
      vocab_size: tokens are below it.
      first_page: pages of all shards of the folder before this one, as checksums count them.
      first_mask_page: pages that their masks have, or would have.
      name: what the file will be called, if not as `path`.
    """

    def __init__(
        self,
        path: Path,
        *,
        vocab_size: int,
        first_page: int,
        first_mask_page: int,
        name: str | None = None,
    ):
        self._path, self._next_page = path, first_page
        self._name, self._mask = name or path.name, MaskFile(first_page=first_mask_page)
        self._dtype = np.dtype(smallest_dtype(vocab_size)).newbyteorder("<")
        self._per_page = tokens_per_page(smallest_dtype(vocab_size))
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._pending: list[np.ndarray] = []  # tokens that do not fill a page yet
        self._num_pending = self.num_tokens = self.num_documents = 0

    def write(
        self, tokens: np.ndarray, *, documents: int, masked: np.ndarray | None = None
    ) -> None:
        """Append the tokens of whole documents, BOS and EOS included; those that are `masked`, bool
        (tokens.size,), are not learned.
        """
        self._mask.add(masked, tokens.size)
        self._pending.append(tokens.astype(self._dtype, copy=False))
        self._num_pending += tokens.size
        self.num_tokens += tokens.size
        self.num_documents += documents
        if self._num_pending >= _PAGES_AT_A_TIME * self._per_page:
            self._write_pages(self._num_pending // self._per_page)

    def close(self) -> ShardEntry:
        """Write the last page, and beside the shard its mask if it has one; return how the index
        describes it.
        """
        self._write_pages(-(-self._num_pending // self._per_page))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return ShardEntry(
            file=self._name,
            documents=self.num_documents,
            tokens=self.num_tokens,
            sha256=self._hash.hexdigest(),
            masked=self._mask.write(self.mask_path),
        )

    def abandon(self) -> None:
        """Close the file without finishing it."""
        self._file.close()

    @property
    def mask_path(self) -> Path:
        """Where the mask goes, if there is one."""
        return self._path.with_name(mask_name(self._name))

    @property
    def next_page(self) -> int:
        """The number of the page after those that are written."""
        return self._next_page

    def _write_pages(self, count: int) -> None:
        tokens = np.concatenate(self._pending) if self._pending else np.empty(0, self._dtype)
        size = min(tokens.size, count * self._per_page)
        pages = as_pages(tokens[:size].view(np.uint8), self._next_page)
        self._next_page += count
        self._pending, self._num_pending = [tokens[size:]], tokens.size - size
        self._hash.update(pages.data)
        self._file.write(pages.data)


class ShardWriter:
    """Write documents as shards into an empty folder; the index is written last, by `close`.

    Each document lies in one shard. Leaving a `with` block by an exception leaves no index, so a
    half-written folder is never mistaken for a whole one.
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
        self._shard_tokens = shard_tokens
        self._entries: list[ShardEntry] = []
        self._next_page = self._next_mask_page = 0
        self._file: ShardFile | None = None

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
            self._file.abandon()

    def write_document(
        self, ids: Iterable[int] | np.ndarray, *, masked: np.ndarray | None = None
    ) -> int:
        """Append one document (token ids without BOS and EOS) and return the number of tokens
        stored; ids that are `masked`, bool (len(ids),), are not learned.
        """
        body = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        if body.size and (body.min() < 0 or body.max() >= self._vocab_size or self._bos_id in body):
            raise ValueError(
                f"token ids must be in [0, {self._vocab_size}) and not BOS ({self._bos_id})"
            )
        if self._file is None:
            path = self._folder / shard_name(len(self._entries))
            self._file = ShardFile(
                path,
                vocab_size=self._vocab_size,
                first_page=self._next_page,
                first_mask_page=self._next_mask_page,
            )
        document = as_stored(body, self._bos_id, self._eos_id)
        if masked is not None:
            masked = np.pad(masked, (1, document.size - 1 - body.size))
        self._file.write(document, documents=1, masked=masked)
        if self._file.num_tokens >= self._shard_tokens:
            self._finish_shard()
        return int(document.size)

    def close(self) -> ShardIndex:
        """Finish the last shard and write the index; return it."""
        self._finish_shard()
        return write_index(
            self._folder,
            self._entries,
            vocab_size=self._vocab_size,
            bos_id=self._bos_id,
            eos_id=self._eos_id,
            tokenizer=self._tokenizer,
        )

    def _finish_shard(self) -> None:
        if self._file is not None:
            self._entries.append(self._file.close())
            self._next_mask_page += mask_pages(self._file.num_tokens)
            self._next_page, self._file = self._file.next_page, None


def as_stored(ids: Sequence[int] | np.ndarray, bos_id: int, eos_id: int) -> np.ndarray:
    """Return a document as it is stored, int64: BOS, its tokens, EOS. Where both are one token it
    is stored once, in front: the document before ends there.
    """
    end = [] if bos_id == eos_id else [eos_id]
    return np.concatenate([[bos_id], np.asarray(ids, np.int64), np.asarray(end, np.int64)])


def shard_name(number: int) -> str:
    """Return the file name of a folder's shard."""
    return f"shard-{number:05d}.tokens"


def write_index(
    folder: Path,
    entries: Sequence[ShardEntry],
    *,
    vocab_size: int,
    bos_id: int,
    eos_id: int,
    tokenizer: str,
) -> ShardIndex:
    """Write the index of shards that are there; with it the folder is whole."""
    index = ShardIndex(
        dtype=smallest_dtype(vocab_size),
        vocab_size=vocab_size,
        bos_id=bos_id,
        eos_id=eos_id,
        tokenizer=tokenizer,
        documents=sum(entry.documents for entry in entries),
        tokens=sum(entry.tokens for entry in entries),
        shards=list(entries),
    )
    text = index.model_dump_json(indent=1, exclude_none=True)
    write_whole(folder / INDEX_NAME, (text + "\n").encode())
    return index
