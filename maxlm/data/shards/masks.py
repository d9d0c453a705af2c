"""Which tokens are read but not learned: a bit for each token of a shard, in a file beside it.

A shard of which every token is learned has no such file. Bits are in the order of tokens, the
lowest of a byte first; pages are those of tokens, numbered apart from them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maxlm.data.shards.index import PAYLOAD_BYTES, MaskEntry, ShardEntry
from maxlm.data.shards.pages import PageFile, PageFiles, as_pages
from maxlm.files import write_whole

FIRST_PAGE = 2**31
"""Pages of masks are numbered from here, so that none passes for one of tokens."""
_BITS_A_PAGE = 8 * PAYLOAD_BYTES


def mask_name(shard: str) -> str:
    """Return the name of the file that lies beside a shard."""
    return f"{Path(shard).stem}.masked"


def mask_pages(tokens: int) -> int:
    """Return how many pages the bits of so many tokens take."""
    return -(-tokens // _BITS_A_PAGE)


class MaskFile:
    """Collects the bits of one shard and writes them, unless none is set.

    Args:
      first_page: pages that the masks of all shards before this one have, or would have.
    """

    def __init__(self, *, first_page: int):
        self._first_page = FIRST_PAGE + first_page
        self._packed: list[np.ndarray] = []
        self._rest = np.empty(0, bool)  # fewer than 8
        self._masked = 0

    def add(self, masked: np.ndarray | None, tokens: int) -> None:
        """Append the bits of so many tokens, bool (tokens,); None: all of them are learned."""
        bits = np.zeros(tokens, bool) if masked is None else masked
        assert bits.shape == (tokens,)
        self._masked += int(np.count_nonzero(bits))
        bits = np.concatenate([self._rest, bits])
        whole = bits.size // 8 * 8
        self._packed.append(np.packbits(bits[:whole], bitorder="little"))
        self._rest = bits[whole:]

    def write(self, path: Path) -> MaskEntry | None:
        """Write the file and return how the index describes it; None and no file without any."""
        if not self._masked:
            return None
        self._packed.append(np.packbits(self._rest, bitorder="little"))
        data = as_pages(np.concatenate(self._packed), self._first_page).tobytes()
        write_whole(path, data)
        return MaskEntry(tokens=self._masked, sha256=hashlib.sha256(data).hexdigest())


class Masks:
    """Random access to the bits of a folder's shards.

    Attributes:
      files: of the shards that have masked tokens.

    Raises:
      UserError: a file is missing, or has another size than it should.
    """

    def __init__(self, folder: Path, shards: Sequence[ShardEntry]):
        pages = [mask_pages(shard.tokens) for shard in shards]
        first = [FIRST_PAGE + page for page in itertools.accumulate(pages, initial=0)]
        self._numbers: dict[int, int] = {}  # of the shards that have a file, in `_files`
        about: list[PageFile] = []
        for number, shard in enumerate(shards):
            if shard.masked is not None:
                self._numbers[number] = len(about)
                name, sha256 = mask_name(shard.file), shard.masked.sha256
                about.append(PageFile(name, pages[number], first[number], sha256))
        self.files = PageFiles(folder, about)

    def read(self, shard: int, offset: int, size: int) -> np.ndarray:
        """Return the bits of tokens [offset, offset + size) of a shard, bool (size,).

        Raises:
          UserError: a page does not have its checksum.
        """
        if shard not in self._numbers or not size:
            return np.zeros(size, bool)
        first, last = offset // _BITS_A_PAGE, (offset + size - 1) // _BITS_A_PAGE
        payload = self.files.read(self._numbers[shard], first, last - first + 1).reshape(-1)
        begin = offset - first * _BITS_A_PAGE
        some = payload[begin // 8 : (begin + size + 7) // 8]
        bits = np.unpackbits(some, bitorder="little").astype(bool)
        return bits[begin % 8 : begin % 8 + size]

    def verify(self) -> None:
        """Read every byte and compare each page's and each file's checksum.

        Raises:
          UserError: a file is not what the index says.
        """
        for number in self._numbers.values():
            for _ in self.files.verify(number):
                pass
