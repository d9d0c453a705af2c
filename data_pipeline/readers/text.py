"""Text, code and HTML files: a document each; text files beyond the cap in pieces."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Generator, Iterable, Iterator

from data_pipeline.readers.record import MAX_RECORD_BYTES, Found, Unread
from data_pipeline.readers.streams import Damage
from data_pipeline.text.encoding import decode
from maxlm.config.pipeline.raw import RawTextConfig


def read_text(chunks: Iterable[bytes | Damage], raw: RawTextConfig) -> Iterator[Found | Unread]:
    """Yield a text file's text; one of more than `MAX_RECORD_BYTES` in pieces, cut after lines."""
    del raw
    pieces, number = _Pieces(), 0
    for chunk in chunks:
        if isinstance(chunk, Damage):
            yield Unread("", chunk.reason)
            continue
        for piece in pieces.add(chunk):
            number += 1
            yield _decoded(f"#{number}", piece, "utf-8-sig")
    last = pieces.rest()
    if last or not number:
        yield _decoded(f"#{number + 1}" if number else "", last, "utf-8-sig")


def read_python(chunks: Iterable[bytes | Damage], raw: RawTextConfig) -> Iterator[Found | Unread]:
    """Yield a Python file's text, in the encoding that it declares (PEP 263)."""
    del raw
    data = yield from _whole(chunks)
    if data is not None:
        try:
            encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0]
        except SyntaxError:  # it declares one that does not exist, or two
            yield Unread("", "undecodable file")
        else:
            yield _decoded("", data, encoding)


def read_html(chunks: Iterable[bytes | Damage], raw: RawTextConfig) -> Iterator[Found | Unread]:
    """Yield an HTML file's markup, whatever its encoding."""
    del raw
    data = yield from _whole(chunks)
    if data is not None:
        found = decode(data, is_html=True)
        yield Found("", found.text, {"content_type": "text/html", "encoding": found.encoding})


class _Pieces:
    """Bytes that come in chunks and go in pieces of at most `MAX_RECORD_BYTES`, cut after lines."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._size = 0

    def add(self, chunk: bytes) -> Iterator[bytes]:
        self._held.append(chunk)
        self._size += len(chunk)
        if self._size > MAX_RECORD_BYTES:
            data = b"".join(self._held)
            cut = data.rfind(b"\n") + 1 or _character_start(data)
            yield data[:cut]
            self._held, self._size = [data[cut:]], len(data) - cut

    def rest(self) -> bytes:
        return b"".join(self._held)


def _whole(chunks: Iterable[bytes | Damage]) -> Generator[Unread, None, bytes | None]:
    """Return all bytes of a file, or None if they are too many; yields what is damaged."""
    held, size = [], 0
    for chunk in chunks:
        if isinstance(chunk, Damage):
            yield Unread("", chunk.reason)
            continue
        held.append(chunk)
        size += len(chunk)
        if size > MAX_RECORD_BYTES:
            yield Unread("", "file too large")
            return None
    return b"".join(held)


def _decoded(place: str, data: bytes, encoding: str) -> Found | Unread:
    try:
        return Found(place, data.decode(encoding))
    except (UnicodeError, LookupError):
        return Unread(place, "undecodable file")


def _character_start(data: bytes) -> int:
    """Return where the last character of UTF-8 begins, as it may not be whole."""
    place = len(data) - 1
    while place > len(data) - 4 and data[place] & 0xC0 == 0x80:
        place -= 1
    return place
