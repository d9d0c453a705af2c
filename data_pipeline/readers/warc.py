"""WARC and WET archives (ISO 28500): the pages of a crawl, or their texts; damage is skipped,
counted and named.

Written here rather than taken from a library, as those end without a word at a truncated record and
at a damaged gzip member.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator

from data_pipeline.documents import Value
from data_pipeline.readers.record import MAX_RECORD_BYTES, Found, Unread
from data_pipeline.readers.streams import Damage
from data_pipeline.text.encoding import decode
from maxlm.config.pipeline.raw import RawTextConfig

MAX_HEADER_BYTES = 2**16
HTML_TYPES = ("text/html", "application/xhtml+xml")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_VERSION = re.compile(rb"WARC/\d")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})[^\r\n]*\r?\n")

Headers = dict[str, str]


class _DamagedError(Exception):
    """The bytes that were asked for are not there."""


def read_warc(chunks: Iterable[bytes | Damage], raw: RawTextConfig) -> Iterator[Found | Unread]:
    """Yield the pages (`response`, `resource`) and the texts (`conversion`) of an archive.

    A place is the number of the record in the archive, from 1.
    """
    del raw
    bytes_ = _Bytes(chunks)
    number = 0
    while True:
        number += 1
        try:
            found = bytes_.seek(_VERSION)
            if bytes_.passed:
                yield Unread(f":{number}", "damaged WARC record")
            if not found:
                return
            headers = _headers(bytes_.until_blank_line())
            yield _record(f":{number}", headers, bytes_)
        except _DamagedError as error:
            yield Unread(f":{number}", str(error))


def _record(place: str, headers: Headers, bytes_: _Bytes) -> Found | Unread:
    length = headers.get("content-length", "")
    if not length.isascii() or not length.isdecimal() or len(length) > 18:
        return Unread(place, "WARC record without a length")
    kind = headers.get("warc-type", "")
    if int(length) > MAX_RECORD_BYTES:
        bytes_.skip(int(length))
        return Unread(place, "WARC record too long")
    block = bytes_.take(int(length))
    meta: dict[str, Value] = {}
    for name, header in (("url", "warc-target-uri"), ("date", "warc-date")):
        if header in headers:
            meta[name] = headers[header].strip("<>")
    if kind == "conversion":
        return Found(place, block.decode("utf-8", "replace"), meta)
    if kind == "resource":
        return _page(place, headers.get("content-type", ""), block, meta)
    if kind == "response":
        return _response(place, block, meta)
    return Unread(place, f"WARC record of type {kind[:20] or 'unknown'}")


def _response(place: str, block: bytes, meta: dict[str, Value]) -> Found | Unread:
    head, blank, body = block.partition(b"\r\n\r\n")
    if not blank:
        head, blank, body = block.partition(b"\n\n")
    status, _, rest = head.partition(b"\n")
    if status.split()[1:2] != [b"200"]:
        return Unread(place, "HTTP status other than 200")
    headers = _headers(rest)
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = _joined(body)
    coding = headers.get("content-encoding", "").lower()
    if coding in ("gzip", "x-gzip", "deflate"):
        unpacked = _unpacked(body, coding)
        if unpacked is None:
            return Unread(place, "damaged HTTP body")
        body = unpacked
    elif coding not in ("", "identity"):
        return Unread(place, "HTTP body in an unknown encoding")
    return _page(place, headers.get("content-type", "text/html"), body, meta)


def _page(place: str, content_type: str, body: bytes, meta: dict[str, Value]) -> Found | Unread:
    media = content_type.partition(";")[0].strip().lower()
    if media not in (*HTML_TYPES, "text/plain"):
        return Unread(place, "page of another content type")
    charset = _CHARSET.search(content_type)
    found = decode(body, declared=charset[1] if charset else None, is_html=media in HTML_TYPES)
    return Found(place, found.text, {**meta, "content_type": media, "encoding": found.encoding})


def _headers(block: bytes) -> Headers:
    """Return headers by their names in small letters; of two of a name the first."""
    headers: Headers = {}
    for line in block.decode("utf-8", "replace").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name.strip().lower(), value.strip())
    return headers


def _joined(body: bytes) -> bytes:
    """Return a body without the marks of its chunks (RFC 9112, 7.1); as it is if it has none,
    which is how most crawlers store it.
    """
    parts: list[bytes] = []
    place = 0
    while match := _CHUNK_SIZE.match(body, place):
        size = int(match[1], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(body[match.end() : match.end() + size])
        place = match.end() + size
        place += len(body[place : place + 2]) - len(body[place : place + 2].lstrip(b"\r\n"))
    return b"".join(parts) if place >= len(body) > 0 and parts else body


def _unpacked(body: bytes, coding: str) -> bytes | None:
    """Return a compressed body's contents, as much of it as may be held; None if it is damaged."""
    if coding != "deflate" and not body.startswith(b"\x1f\x8b"):
        return body  # the crawler has unpacked it and left the header
    decoder = zlib.decompressobj(31 if coding != "deflate" else 15 if body[:1] == b"x" else -15)
    try:
        return decoder.decompress(body, MAX_RECORD_BYTES)
    except zlib.error:
        return None


class _Bytes:
    """A stream with the means to find the next record.

    Attributes:
      passed: whether `seek` has passed anything but white space.
    """

    def __init__(self, chunks: Iterable[bytes | Damage]):
        self._chunks, self._held, self._place = iter(chunks), b"", 0
        self.passed = False

    def seek(self, pattern: re.Pattern[bytes]) -> bool:
        """Go on to the next line that starts like this, behind its first character; return whether
        there is one.
        """
        self.passed = False
        while True:
            found = pattern.search(self._held, self._place)
            while found and self._held[found.start() - 1 : found.start()] not in (b"", b"\n"):
                found = pattern.search(self._held, found.start() + 1)
            if found:
                self._pass(found.start())
                self._place += 1  # so that a record without an end is not found again
                return True
            keep = max(len(self._held) - 8, self._place)
            self._pass(keep)
            if not self._fill():
                self._pass(len(self._held))
                return False

    def until_blank_line(self) -> bytes:
        """Return the lines before the next blank one, which is passed."""
        while True:
            found = _BLANK_LINE.search(self._held, self._place)
            size = (found.start() if found else len(self._held)) - self._place
            if size > MAX_HEADER_BYTES:
                raise _DamagedError("WARC record without an end of its headers")
            if found:
                block = self._held[self._place : found.start()]
                self._place = found.end()
                return block
            if not self._fill():
                raise _DamagedError("truncated WARC record")

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        parts, missing = [], size
        while missing > len(self._held) - self._place:
            parts.append(self._held[self._place :])
            missing -= len(parts[-1])
            self._place = len(self._held)
            if not self._fill():
                raise _DamagedError("truncated WARC record")
        parts.append(self._held[self._place : self._place + missing])
        self._place += missing
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Pass bytes without holding them."""
        while size > len(self._held) - self._place:
            size -= len(self._held) - self._place
            self._place = len(self._held)
            if not self._fill():
                raise _DamagedError("truncated WARC record")
        self._place += size

    def _pass(self, place: int) -> None:
        self.passed = self.passed or bool(self._held[self._place : place].strip())
        self._place = place

    def _fill(self) -> bool:
        """Hold more bytes; return whether there were any.

        Raises:
          _DamagedError: they are damaged; what is held is given up, what follows is read on.
        """
        chunk = next(self._chunks, None)
        if isinstance(chunk, Damage):
            self._held, self._place = b"", 0
            raise _DamagedError(chunk.reason)
        if chunk is None:
            return False
        self._held, self._place = self._held[self._place :] + chunk, 0
        return True
