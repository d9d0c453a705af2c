"""Bytes of a file, local or in an object store: hashed as they are read, decompressed with damage
told and skipped, never more than a bounded multiple of what is stored.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec
import zstandard

from maxlm.files import open_regular

CHUNK_BYTES = 2**20
# A file that gives more than this is a bomb: text compresses 3 to 10 times, the most repetitive
# logs 200 times, a zstd bomb 32,700 times.
MOST_EXPANSION = 500
FREE_BYTES = 2**28


class Damage(NamedTuple):
    """Something in a file that cannot be read; what follows it is read on."""

    reason: str


def is_url(path: str) -> bool:
    """Tell whether a path is one of an object store, such as s3://bucket/file."""
    return "://" in path


def open_input(path: str) -> BinaryIO:
    """Open a local file or one of an object store.

    Raises:
      OSError: it cannot be opened, or is no regular file.
    """
    if is_url(path):
        file: Any = fsspec.open(path, "rb").open()
        return file  # type: ignore[no-any-return]
    return open_regular(Path(path))


class Input:
    """A file that is read once, from its start to its end.

    Attributes:
      bytes: how many were read.
    """

    def __init__(self, path: str):
        self._file = open_input(path)
        self._hash, self.bytes = hashlib.sha256(), 0

    def __enter__(self) -> Input:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self) -> bytes:
        """Return the next bytes, none at the end."""
        chunk = self._file.read(CHUNK_BYTES)
        self._hash.update(chunk)
        self.bytes += len(chunk)
        return chunk

    def sha256(self) -> str:
        """Read what is left, and return the hash of all."""
        while self.read():
            pass
        return self._hash.hexdigest()


def chunks(file: Input, compression: str) -> Iterator[bytes | Damage]:
    """Yield the bytes of a file, decompressed, and what is damaged in between.

    Args:
      file: the file.
      compression: .gz, .zst, .bz2, .xz, or nothing.
    """
    if not compression:
        yield from iter(file.read, b"")
        return
    given, damaged = 0, False
    for chunk in _members(file, _FORMATS[compression]):
        if isinstance(chunk, bytes):
            given += len(chunk)
            yield chunk
        elif not damaged:  # once for all tries to find the next member
            yield chunk
        damaged = isinstance(chunk, Damage)
        if given > FREE_BYTES + MOST_EXPANSION * file.bytes:
            yield Damage("compressed file that gives too much")
            return


class _Format(NamedTuple):
    """A format of compression: the bytes that a member starts with, and its decoder."""

    name: str
    start: bytes
    make: Callable[[], Any]
    error: type[Exception]
    feed: Callable[[Any, bytes], Iterator[bytes]]


def _members(file: Input, form: _Format) -> Iterator[bytes | Damage]:
    """Yield the contents of all members; after a damaged one go on with the next."""
    data = file.read()
    while data:
        decoder = form.make()
        try:
            while True:
                yield from form.feed(decoder, data)
                if decoder.eof:
                    data = decoder.unused_data
                    break
                data = file.read()
                if not data:
                    yield Damage(f"{form.name} data that ends too early")
                    return
        except form.error:
            yield Damage(f"damaged {form.name} data")
            data = _seek(file, data[1:], form.start)
        while not (data := data.lstrip(b"\0")):  # what tapes and downloads are filled up with
            data = file.read()
            if not data:
                return


def _seek(file: Input, data: bytes, start: bytes) -> bytes:
    """Return what is left of a file from the next start of a member on."""
    while (place := data.find(start)) < 0:
        more = file.read()
        if not more:
            return b""
        data = data[1 - len(start) :] + more
    return data[place:]


def _feed_zlib(decoder: Any, data: bytes) -> Iterator[bytes]:
    while data and not decoder.eof:
        yield decoder.decompress(data, CHUNK_BYTES)
        data = decoder.unconsumed_tail


def _feed(decoder: Any, data: bytes) -> Iterator[bytes]:
    yield decoder.decompress(data, CHUNK_BYTES)
    while not (decoder.eof or decoder.needs_input):
        yield decoder.decompress(b"", CHUNK_BYTES)


class _Zstd:
    """A frame's decoder, whose output cannot be limited, so that little is fed at a time."""

    SLICE_BYTES = 2048  # 64 MB at most, as a block of 4 bytes gives 128 KiB

    def __init__(self) -> None:
        self._decoder = zstandard.ZstdDecompressor().decompressobj()
        self.eof, self.unused_data = False, b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the data gives."""
        for start in range(0, len(data), self.SLICE_BYTES):
            stop = start + self.SLICE_BYTES
            yield self._decoder.decompress(data[start:stop])
            if self._decoder.eof:
                self.eof, self.unused_data = True, self._decoder.unused_data + data[stop:]
                return


_FORMATS = {
    ".gz": _Format("gzip", b"\x1f\x8b\x08", lambda: zlib.decompressobj(31), zlib.error, _feed_zlib),
    ".bz2": _Format("bzip2", b"BZh", bz2.BZ2Decompressor, OSError, _feed),
    ".xz": _Format(
        "xz",
        b"\xfd7zXZ\0",
        lambda: lzma.LZMADecompressor(memlimit=2**28),
        lzma.LZMAError,
        _feed,
    ),
    ".zst": _Format(
        "zstd", b"\x28\xb5\x2f\xfd", _Zstd, zstandard.ZstdError, lambda zstd, data: zstd.feed(data)
    ),
}
COMPRESSIONS = tuple(_FORMATS)
