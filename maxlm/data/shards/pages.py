"""Files of pages with checksums: what tokens and masks are stored in."""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maxlm.config.errors import UserError
from maxlm.data.shards.index import PAGE_BYTES, PAYLOAD_BYTES, page_checksum
from maxlm.data.shards.open_files import OpenFiles, ReplacedError

_VERIFIED_AT_A_TIME = 512


class PageFile(NamedTuple):
    """A file of pages as the index of its folder describes it.

    Attributes:
      name: in its folder.
      pages: how many it has.
      first_page: the number of the first, as checksums count them.
      sha256: of the file.
    """

    name: str
    pages: int
    first_page: int
    sha256: str


def as_pages(payload: np.ndarray, first_page: int) -> np.ndarray:
    """Return bytes as pages, uint8 (num_pages, PAGE_BYTES), with their checksums; the last is filled
    up with zeros.

    Args:
      payload: uint8 (num_bytes,).
      first_page: the number of the first page.
    """
    count = -(-payload.size // PAYLOAD_BYTES)
    filled = np.zeros(count * PAYLOAD_BYTES, np.uint8)
    filled[: payload.size] = payload
    pages = np.zeros((count, PAGE_BYTES), np.uint8)
    pages[:, :PAYLOAD_BYTES] = filled.reshape(count, PAYLOAD_BYTES)
    for number, page in enumerate(pages, start=first_page):
        checksum = struct.pack("<I", page_checksum(page.data, number))
        page[PAYLOAD_BYTES:] = np.frombuffer(checksum, np.uint8)
    return pages


class PageFiles:
    """Random access to the pages of a folder's files; every page that is read is checked.

    Raises:
      UserError: a file is missing, cannot be opened, or has another size than the index says.
    """

    def __init__(self, folder: Path, files: Sequence[PageFile]):
        self._folder, self._about = folder, files
        self._files = self._open()

    def __len__(self) -> int:
        return len(self._about)

    def sample(self, number: int, count: int) -> bytes:
        """Return the checksums of some pages of a file, the first and the last among them if they
        are several.

        Raises:
          UserError: a page does not have its checksum, or cannot be read.
        """
        last = self._about[number].pages - 1
        places = {last // 2} if count == 1 else {last * n // (count - 1) for n in range(count)}
        return b"".join(self._read(number, place, 1)[PAYLOAD_BYTES:] for place in sorted(places))

    def read(self, number: int, first: int, count: int) -> np.ndarray:
        """Return the payload of pages [first, first + count) of a file, uint8 (count, PAYLOAD_BYTES).

        Raises:
          UserError: a page does not have its checksum, or cannot be read.
        """
        data = self._read(number, first, count)
        pages = np.frombuffer(data, np.uint8).reshape(count, PAGE_BYTES)
        return pages[:, :PAYLOAD_BYTES]

    def verify(self, number: int) -> Iterator[np.ndarray]:
        """Yield all of a file's payload, some pages at a time, and compare its SHA-256.

        Raises:
          UserError: it is not what the index says.
        """
        digest, num_pages = hashlib.sha256(), self._about[number].pages
        for first in range(0, num_pages, _VERIFIED_AT_A_TIME):
            count = min(_VERIFIED_AT_A_TIME, num_pages - first)
            data = self._read(number, first, count)
            digest.update(data)
            yield np.frombuffer(data, np.uint8).reshape(count, PAGE_BYTES)[:, :PAYLOAD_BYTES]
        if digest.hexdigest() != self._about[number].sha256:
            raise self.damaged(number, "its SHA-256 is not the one in the index")

    def damaged(self, number: int, what: str) -> UserError:
        """Return the error that says what is wrong with a file."""
        path = self._folder / self._about[number].name
        return UserError(
            f"{path}: damaged token shard: {what}; "
            "copy the folder again from where it is whole, or run: maxlm prepare RUN.yaml --force"
        )

    def _open(self) -> OpenFiles:
        try:
            files = OpenFiles([self._folder / file.name for file in self._about])
        except FileNotFoundError as error:
            name = Path(str(error.filename)).name
            number = [file.name for file in self._about].index(name)
            raise self.damaged(number, "the file is missing") from None
        except OSError as error:
            cure = "; raise `ulimit -n`" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
            raise UserError(
                f"{error.filename or self._folder}: cannot be opened: {error.strerror}{cure}"
            ) from None
        for number, file in enumerate(self._about):
            expected = file.pages * PAGE_BYTES
            if files.size(number) != expected:
                what = f"it has {files.size(number)} bytes, the index says {expected}"
                raise self.damaged(number, what)
        return files

    def _read(self, number: int, first: int, count: int) -> bytes:
        try:
            data = self._files.read(number, first * PAGE_BYTES, count * PAGE_BYTES)
        except ReplacedError:
            raise self.damaged(number, "it was replaced while it was read") from None
        except OSError as error:
            raise self.damaged(number, f"reading it failed: {error.strerror}") from None
        if len(data) != count * PAGE_BYTES:
            raise self.damaged(number, "it became shorter while it was open")
        view = memoryview(data)
        for place in range(count):
            page = view[place * PAGE_BYTES : (place + 1) * PAGE_BYTES]
            stored = int.from_bytes(page[PAYLOAD_BYTES:], "little")
            if page_checksum(page, self._about[number].first_page + first + place) != stored:
                raise self.damaged(number, f"page {first + place} does not have its checksum")
        return data
