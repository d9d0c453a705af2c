"""Bytes of the web to text: which encoding they are in, and a text whatever they hold."""

from __future__ import annotations

import codecs
from typing import NamedTuple

from data_pipeline.libraries import load_library

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Encodings that switch by escape sequences are ASCII to the eye of a UTF-8 decoder.
_ESCAPES = (b"\x1b$", b"\x1b(", b"~{")
# Of Python alone, or an attack: WHATWG Encoding has none of them.
_NOT_OF_THE_WEB = frozenset(
    (
        "utf-7",
        "idna",
        "punycode",
        "unicode-escape",
        "unicode_escape",
        "raw-unicode-escape",
        "raw_unicode_escape",
        "mbcs",
        "oem",
    )
)
_SAMPLE_BYTES = 128 * 1024


class Decoded(NamedTuple):
    """A text, the encoding it was in, and how many of its characters could not be read."""

    text: str
    encoding: str
    replaced: int


def decode(data: bytes, *, declared: str | None = None, is_html: bool = False) -> Decoded:
    """Return the text of bytes in an unknown encoding.

    A byte order mark decides; then UTF-8 if all of it is valid, which no other text is by chance;
    then what the server or the page declares, if that reads all of it; then a guess from the
    bytes. What cannot be read becomes U+FFFD.

    Args:
      data: the bytes.
      declared: the encoding that a header names.
      is_html: look for a declaration in the page itself.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _replacing(data[len(mark) :], encoding)
    escapes = any(escape in data for escape in _ESCAPES)
    candidates = ([] if escapes else ["utf-8"]) + [_known(declared)]
    if text := _first_that_fits(data, candidates):
        return text
    guess = _detect(data, is_html=is_html)
    return _first_that_fits(data, [guess, "utf-8"]) or _replacing(data, guess or "utf-8")


def _first_that_fits(data: bytes, encodings: list[str | None]) -> Decoded | None:
    for encoding in encodings:
        if encoding:
            try:
                return Decoded(data.decode(encoding), encoding, 0)
            except UnicodeError:
                continue
    return None


def _replacing(data: bytes, encoding: str) -> Decoded:
    text = data.decode(encoding, "replace")
    return Decoded(text, encoding, text.count("\ufffd"))


def _known(name: str | None) -> str | None:
    """Return Python's name of an encoding for text, or None if it has none.

    The web says Latin-1 and ASCII where it means Windows-1252 (WHATWG Encoding, 4.2).
    """
    if not name:
        return None
    try:
        found = codecs.lookup(name.strip().strip("\"'")).name
        (b" " * 4).decode(found)  # refuses what is no encoding of text, such as base64
    except (LookupError, ValueError):  # ValueError: a zero byte in the name
        return None
    if found in _NOT_OF_THE_WEB:
        return None
    return "cp1252" if found in ("iso8859-1", "ascii") else found


def _detect(data: bytes, *, is_html: bool) -> str | None:
    library = load_library("resiliparse.parse.encoding", extra="data", user="extract")
    name = library.detect_encoding(data[:_SAMPLE_BYTES], from_html_meta=is_html)
    return _known(name)
