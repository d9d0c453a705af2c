"""Random access to a folder of token shards. Every read checks the pages it touches: no state, no
warm-up, any order.
"""

from __future__ import annotations

import bisect
import errno
import hashlib
import itertools
from pathlib import Path

import numpy as np

from maxlm.config.errors import UserError
from maxlm.data.shards.index import (
    PAGE_BYTES,
    PAYLOAD_BYTES,
    page_checksum,
    read_index,
)
from maxlm.data.shards.open_files import OpenFiles, ReplacedError


class TokenShards:
    """Random access to the tokens of a folder of shards, as one stream.

    Opening checks the index, that every shard is there and has its size. Of a folder with few
    shards the files stay open: when it is replaced while a run reads it, it does not change under
    that run. Of one with many a few stay open; that others were replaced is an error then.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        self._dtype = np.dtype(self.index.dtype).newbyteorder("<")
        self._starts = [0, *itertools.accumulate(shard.tokens for shard in self.index.shards)]
        pages = (self.index.pages(shard.tokens) for shard in self.index.shards)
        self._first_pages = [0, *itertools.accumulate(pages)]
        self._files = self._open()

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

    def place(self, token: int) -> tuple[str, int]:
        """Return the file that a token of the stream lies in, and its place among the file's."""
        shard = bisect.bisect_right(self._starts, token) - 1
        return self.index.shards[shard].file, token - self._starts[shard]

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

    def _open(self) -> OpenFiles:
        try:
            files = OpenFiles([self.folder / shard.file for shard in self.index.shards])
        except FileNotFoundError as error:
            name = Path(str(error.filename)).name
            number = [shard.file for shard in self.index.shards].index(name)
            raise self._damaged(number, "the file is missing") from None
        except OSError as error:
            cure = "; raise `ulimit -n`" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
            raise UserError(
                f"{error.filename or self.folder}: cannot be opened: {error.strerror}{cure}"
            ) from None
        for number, shard in enumerate(self.index.shards):
            expected = self.index.pages(shard.tokens) * PAGE_BYTES
            if files.size(number) != expected:
                what = f"it has {files.size(number)} bytes, the index says {expected}"
                raise self._damaged(number, what)
        return files

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
            data = self._files.read(shard, first * PAGE_BYTES, count * PAGE_BYTES)
        except ReplacedError:
            raise self._damaged(shard, "it was replaced while it was read") from None
        except OSError as error:
            raise self._damaged(shard, f"reading it failed: {error.strerror}") from None
        if len(data) != count * PAGE_BYTES:
            raise self._damaged(shard, "it became shorter while it was open")
        view = memoryview(data)
        for number in range(count):
            page = view[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
            stored = int.from_bytes(page[PAYLOAD_BYTES:], "little")
            if page_checksum(page, self._first_pages[shard] + first + number) != stored:
                raise self._damaged(shard, f"page {first + number} does not have its checksum")
        return data

    def _damaged(self, shard: int, what: str) -> UserError:
        path = self.folder / self.index.shards[shard].file
        return UserError(
            f"{path}: damaged token shard: {what}; "
            "copy the folder again from where it is whole, or run: maxlm prepare RUN.yaml --force"
        )
