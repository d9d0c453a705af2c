"""Raw text to documents: each file decoded, cleaned and named; what is skipped is counted with its
reason.
"""

from __future__ import annotations

import hashlib
import io
import json
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from data_pipeline.files import Skipped, listed_files, standard_library
from maxlm.config.errors import UserError
from maxlm.config.pipeline.raw import RawTextConfig
from maxlm.data.tokenizer import replace_surrogates
from maxlm.files import open_regular, read_regular

MAX_LINE_BYTES = 2**28  # a longer line of a .jsonl file is skipped


@dataclass(frozen=True)
class Document:
    """A text and its name; a file name's bytes that are no UTF-8 are lone surrogates in it (PEP
    383).
    """

    name: str
    text: str

    @property
    def name_bytes(self) -> bytes:
        """The name as bytes; different names have different bytes."""
        return self.name.encode("utf-8", "surrogatepass")


@dataclass
class Reading:
    """The documents of a source, in a fixed order, and what was skipped."""

    documents: list[Document] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names and texts."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(document.name_bytes + f"\0{len(document.text)}\0".encode())
            digest.update(document.text.encode())
        return digest.hexdigest()


def read_documents(raw: RawTextConfig) -> Reading:
    """Read the documents that a source's `raw` section describes.

    Raises:
      UserError: a path is not there, or nothing readable was found.
    """
    reading = Reading()
    listed = standard_library if raw.kind == "python_stdlib" else listed_files
    for path, name in listed(raw, reading.skipped):
        read = _json_lines if path.suffix.lower() == ".jsonl" else _whole_file
        reading.documents.extend(read(path, name, reading.skipped))
    if not reading.documents:
        where = (
            "the standard library's folder" if raw.kind == "python_stdlib" else ", ".join(raw.paths)
        )
        skipped = "; ".join(reading.skipped.lines()) or "nothing was skipped"
        raise UserError(f"raw: no readable text in {where} ({skipped}); give other raw.paths")
    return reading


def cut(document: Document, max_bytes: int) -> Iterator[Document]:
    """Cut a long document after a line (or within one, if it must be) into pieces of at most
    `max_bytes`.
    """
    data = document.text.encode()
    if len(data) <= max_bytes:
        yield document
        return
    start = number = 0
    while start < len(data):
        stop = min(start + max(max_bytes, 4), len(data))
        if stop < len(data):
            line_end = data.rfind(b"\n", start + max_bytes // 2, stop) + 1
            stop = line_end or _character_start(data, stop)
        number += 1
        yield Document(f"{document.name}#{number}", data[start:stop].decode())
        start = stop


def _character_start(data: bytes, position: int) -> int:
    while data[position] & 0xC0 == 0x80:
        position -= 1
    return position


def _whole_file(path: Path, name: str, skipped: Skipped) -> Iterator[Document]:
    try:
        data = read_regular(path)
    except OSError:
        skipped.add("unreadable file", name)
        return
    try:
        text = data.decode(_encoding(data) if path.suffix.lower() == ".py" else "utf-8-sig")
    except (UnicodeError, SyntaxError, LookupError):
        skipped.add("undecodable file", name)
        return
    yield from _clean(name, text, skipped)


def _encoding(data: bytes) -> str:
    """Return the encoding a Python file declares (PEP 263).

    Raises:
      SyntaxError: it declares an encoding that does not exist, or two.
    """
    return tokenize.detect_encoding(io.BytesIO(data).readline)[0]


def _json_lines(path: Path, name: str, skipped: Skipped) -> Iterator[Document]:
    try:
        with open_regular(path) as file:
            for number, line in _lines(file, name, skipped):
                text = _text_of(line)
                if isinstance(text, str):
                    yield from _clean(f"{name}:{number}", text, skipped)
                else:
                    skipped.add(text.reason, f"{name}:{number}")
    except OSError:
        skipped.add("unreadable file", name)


@dataclass(frozen=True)
class _NoText:
    reason: str


def _text_of(line: bytes) -> str | _NoText:
    """Return the `text` of a line of JSON, or why there is none."""
    try:
        content = json.loads(line)
    except UnicodeDecodeError:
        return _NoText("line that is not UTF-8")
    except (ValueError, RecursionError):
        return _NoText("line that is not JSON")
    text = content.get("text") if isinstance(content, dict) else None
    return text if isinstance(text, str) else _NoText("line without a `text`")


def _lines(file: BinaryIO, name: str, skipped: Skipped) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank with their numbers, from 1."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            skipped.add("line too long", f"{name}:{number}")
        elif line.strip():
            yield number, line


def _clean(name: str, text: str, skipped: Skipped) -> Iterator[Document]:
    text = replace_surrogates(text).replace("\r\n", "\n").replace("\r", "\n")
    if text.strip():
        yield Document(name, text)
    else:
        skipped.add("empty document", name)
