"""Raw text to documents: which files, in which order, decoded how, and what is skipped and why."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from maxlm.config.errors import UserError
from maxlm.config.schema import RawTextConfig
from maxlm.data.tokenizer import replace_surrogates

SUFFIXES = (".txt", ".md", ".py", ".jsonl")
INSTALLED = ("site-packages", "dist-packages", "__pycache__")  # not part of the standard library
TESTS = ("test", "tests", "idle_test")  # some in deliberately bad encodings; many systems leave them out
MAX_LINE_BYTES = 2**28  # a longer line of a .jsonl file is skipped


@dataclass(frozen=True)
class Document:
    """A text and its name, which is the same on every machine."""

    name: str
    text: str


@dataclass
class Reading:
    """The documents of a source, in a fixed order, and how many were skipped for which reason."""

    documents: list[Document] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names and texts."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(f"{document.name}\0{len(document.text)}\0".encode(errors="replace"))
            digest.update(document.text.encode())
        return digest.hexdigest()


def read_documents(raw: RawTextConfig) -> Reading:
    """Read the documents that a source's `raw` section describes.

    Raises:
      UserError: a path is not there, or nothing readable was found.
    """
    reading = Reading()
    files = _standard_library(reading) if raw.kind == "python_stdlib" else _listed_files(raw.paths)
    for path, name in files:
        read = _json_lines if path.suffix == ".jsonl" else _whole_file
        for document in read(path, name, reading.skipped):
            reading.documents.extend(_cut(document, raw.max_document_bytes))
    if not reading.documents:
        where = "the standard library's folder" if raw.kind == "python_stdlib" else ", ".join(raw.paths)
        raise UserError(f"raw: no readable text in {where} (skipped: {dict(reading.skipped)}); give other raw.paths")
    return reading


def _standard_library(reading: Reading) -> Iterator[tuple[Path, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in _walk(root):
        parts = path.relative_to(root).parts
        if path.suffix != ".py" or any(part in INSTALLED for part in parts):
            continue
        if any(part in TESTS for part in parts[:-1]):
            reading.skipped["test file"] += 1
        else:
            yield path, "/".join(parts)


def _listed_files(paths: Iterable[str]) -> Iterator[tuple[Path, str]]:
    if not paths:
        raise UserError("raw.paths is empty; name the files or folders to read")
    seen = set()
    for given in paths:
        root = Path(given)
        if not root.exists():
            raise UserError(f"raw.paths: {given}: there is no such file or folder")
        inside = [path for path in _walk(root) if path.suffix in SUFFIXES] if root.is_dir() else [root]
        for path in inside:
            if path.resolve() not in seen:
                seen.add(path.resolve())
                yield path, path.as_posix()


def _walk(root: Path) -> list[Path]:
    """Return the files below a folder, sorted by their path; links to folders are not followed."""
    found = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return sorted((path for path in found if _is_file(path)), key=lambda path: path.relative_to(root).parts)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return True  # reading it will fail and be counted


def _whole_file(path: Path, name: str, skipped: Counter[str]) -> Iterator[Document]:
    try:
        data = path.read_bytes()
    except OSError:
        skipped["unreadable file"] += 1
        return
    try:
        text = data.decode(_encoding(data) if path.suffix == ".py" else "utf-8-sig")
    except (UnicodeError, SyntaxError, LookupError):
        skipped["undecodable file"] += 1
        return
    yield from _clean(name, text, skipped)


def _encoding(data: bytes) -> str:
    """Return the encoding a Python file declares (PEP 263).

    Raises:
      SyntaxError: it declares an encoding that does not exist, or two.
    """
    return tokenize.detect_encoding(io.BytesIO(data).readline)[0]


def _json_lines(path: Path, name: str, skipped: Counter[str]) -> Iterator[Document]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file, skipped), start=1):
                try:
                    text = json.loads(line)["text"]
                except (ValueError, TypeError, KeyError, RecursionError):
                    text = None
                if isinstance(text, str):
                    yield from _clean(f"{name}:{number}", text, skipped)
                else:
                    skipped["line without a `text`"] += 1
    except OSError:
        skipped["unreadable file"] += 1


def _lines(file: io.BufferedReader, skipped: Counter[str]) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            skipped["line too long"] += 1
        elif line.strip():
            yield line


def _clean(name: str, text: str, skipped: Counter[str]) -> Iterator[Document]:
    text = replace_surrogates(text).replace("\r\n", "\n").replace("\r", "\n")
    if text.strip():
        yield Document(replace_surrogates(name), text)
    else:
        skipped["empty document"] += 1


def _cut(document: Document, max_bytes: int) -> Iterator[Document]:
    """Cut a long document after a line (or within one, if it must be) into documents of at most `max_bytes`."""
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
