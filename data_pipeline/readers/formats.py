"""Which reader reads a file, by its suffix."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator

from data_pipeline.readers.lines import read_json_lines
from data_pipeline.readers.parquet import read_parquet
from data_pipeline.readers.record import Found, Hashed, Unread
from data_pipeline.readers.streams import COMPRESSIONS, Damage, Input, chunks
from data_pipeline.readers.text import read_html, read_python, read_text
from data_pipeline.readers.warc import read_warc
from maxlm.config.pipeline.raw import RawTextConfig

Reader = Callable[[Iterable[bytes | Damage], RawTextConfig], Iterator[Found | Unread]]

PARQUET = ".parquet"  # the one format that is not read from its start to its end
READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".md": read_text,
    ".py": read_python,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".warc": read_warc,
    ".wet": read_warc,
}


def format_of(name: str, suffixes: Iterable[str] = ()) -> tuple[str, str] | None:
    """Return (suffix, suffix of its compression or nothing) of a file, or None.

    Args:
      name: of the file, in small or capital letters.
      suffixes: others that are text.
    """
    name = name.lower()
    compression = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    inner = name.removesuffix(compression)
    if not compression and inner.endswith(PARQUET):
        return PARQUET, ""
    for suffix in (*READERS, *(one.lower() for one in suffixes)):
        if inner.endswith(suffix):
            return suffix, compression
    return None


def path_of_document(name: str, suffixes: Iterable[str]) -> str | None:
    """Return the name of a file, without that of its compression, if it is one document and not
    many.
    """
    suffix, compression = format_of(name, suffixes) or (".txt", "")
    many = suffix == PARQUET or READERS.get(suffix) in (read_json_lines, read_warc)
    return None if many else name[: len(name) - len(compression)]


def read_file(
    path: str, name: str, raw: RawTextConfig
) -> Generator[Found | Unread | Hashed, None, tuple[int, str]]:
    """Yield what is in a file, and return (its bytes, their SHA-256).

    What its reader leaves (all of a Parquet file, the rest of a bomb) is hashed behind the last
    record, one portion after the other, as a large file takes long.

    Raises:
      OSError: it cannot be opened or read.
    """
    suffix, compression = format_of(name, raw.suffixes) or (".txt", "")
    with Input(path) as file:
        if suffix == PARQUET:
            yield from read_parquet(path, raw)
        else:
            reader = READERS.get(suffix, read_text)
            yield from reader(chunks(file, compression), raw)
        while rest := file.read():
            yield Hashed(len(rest))
        return file.bytes, file.sha256()
