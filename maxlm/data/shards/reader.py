"""Random access to a folder of token shards. Every read checks the pages it touches: no state, no
warm-up, any order.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from maxlm.data.shards.index import read_index
from maxlm.data.shards.masks import Masks
from maxlm.data.shards.pages import PageFile, PageFiles


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
        pages = [self.index.pages(shard.tokens) for shard in self.index.shards]
        first = itertools.accumulate(pages, initial=0)
        about = zip(self.index.shards, pages, first, strict=False)
        files = [PageFile(shard.file, count, page, shard.sha256) for shard, count, page in about]
        self._files = PageFiles(self.folder, files)
        self._masks = Masks(self.folder, self.index.shards)

    def __repr__(self) -> str:
        return f"TokenShards({str(self.folder)!r}, tokens={self.num_tokens})"

    @property
    def num_tokens(self) -> int:
        """Tokens in all shards, BOS and EOS included."""
        return self.index.tokens

    @property
    def num_targets(self) -> int:
        """Tokens that are learned from those before them: all that do not only start a document, and
        are not masked.
        """
        shared = self.index.bos_id == self.index.eos_id
        starts = min(1, self.num_documents) if shared else self.num_documents
        return self.num_tokens - starts - self.index.masked

    @property
    def num_documents(self) -> int:
        """Documents in all shards."""
        return self.index.documents

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the shards' checksums: equal tokens and masks in equal order, equal
        fingerprint.
        """
        masks = (
            f"{n} {shard.masked.sha256}"
            for n, shard in enumerate(self.index.shards)
            if shard.masked
        )
        lines = [self.index.tokenizer, *(shard.sha256 for shard in self.index.shards), *masks]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def read(self, start: int, count: int) -> np.ndarray:
        """Return tokens [start, start + count) of the stream as int32.

        Raises:
          UserError: a page does not have its checksum, a file became shorter, or a token is not
            below `vocab_size`.
        """
        out = np.empty(count, np.int32)
        for shard, offset, size, filled in self._parts(start, count):
            out[filled : filled + size] = self._read_shard(shard, offset, size)
        return out

    def read_masked(self, start: int, count: int) -> np.ndarray:
        """Return which of tokens [start, start + count) are not learned, bool (count,).

        Raises:
          UserError: a page does not have its checksum, or a file became shorter.
        """
        out = np.zeros(count, bool)
        if self.index.masked:
            for shard, offset, size, filled in self._parts(start, count):
                out[filled : filled + size] = self._masks.read(shard, offset, size)
        return out

    def sample(self) -> str:
        """Return a hash of some pages of every file, by which other files under the same index show.

        Up to four pages a file, or one where there are more than 256 files: about as many reads as
        there were openings.

        Raises:
          UserError: one of these pages does not have its checksum.
        """
        digest = hashlib.sha256()
        for files in (self._files, self._masks.files):
            for number in range(len(files)):
                digest.update(files.sample(number, 4 if len(files) <= 256 else 1))
        return digest.hexdigest()

    def place(self, token: int) -> tuple[str, int]:
        """Return the file that a token of the stream lies in, and its place among the file's."""
        shard = bisect.bisect_right(self._starts, token) - 1
        return self.index.shards[shard].file, token - self._starts[shard]

    def verify(self) -> None:
        """Read every byte and compare each page's and each shard's checksum.

        Raises:
          UserError: a shard is not what the index says.
        """
        for number in range(len(self.index.shards)):
            for payload in self._files.verify(number):
                self._tokens(number, payload)
        self._masks.verify()

    def _parts(self, start: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (shard, first token in it, tokens, tokens before these) of a range of the stream."""
        if not 0 <= start <= start + count <= self.num_tokens:
            raise IndexError(f"tokens [{start}, {start + count}) of {self.num_tokens}")
        filled, shard = 0, bisect.bisect_right(self._starts, start) - 1
        while filled < count:
            offset = start + filled - self._starts[shard]
            size = min(count - filled, self._starts[shard + 1] - self._starts[shard] - offset)
            yield shard, offset, size, filled
            filled, shard = filled + size, shard + 1

    def _read_shard(self, shard: int, offset: int, size: int) -> np.ndarray:
        per_page = self.index.tokens_per_page
        first, last = offset // per_page, (offset + size - 1) // per_page
        begin = offset - first * per_page
        payload = self._files.read(shard, first, last - first + 1)
        return self._tokens(shard, payload)[begin : begin + size]

    def _tokens(self, shard: int, payload: np.ndarray) -> np.ndarray:
        """Return the tokens of whole pages; one that is no piece of the tokenizer could be neither
        fed nor decoded.
        """
        tokens = np.ascontiguousarray(payload).view(self._dtype).reshape(-1)
        if tokens.max(initial=0) >= self.index.vocab_size:
            raise self._files.damaged(
                shard,
                f"it holds token {tokens.max()}, the index says vocab_size={self.index.vocab_size}",
            )
        return tokens
