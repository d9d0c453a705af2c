"""Documents in zstd Parquet files: columns id, source, text and meta (JSON), page checksums, row
groups of a few megabytes, so that a reader and a writer hold one row group each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.documents import Document, origin_of
from data_pipeline.storage.whole import written_whole
from maxlm.data.tokenizers import replace_surrogates

SCHEMA = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("text", pa.string()), ("meta", pa.string())]
)
GROUP_BYTES = 8_000_000
GROUP_DOCUMENTS = 10_000


class DocumentWriter:
    """Writes documents in their order into one file, which is there in full or not at all.

    Attributes:
      documents: how many were written.
      bytes: UTF-8 bytes of their texts.
    """

    def __init__(self, path: Path):
        self.documents = self.bytes = 0
        self._stack = ExitStack()
        self._path, self._group, self._size = path, _empty_group(), 0

    def __enter__(self) -> DocumentWriter:
        unfinished = self._stack.enter_context(written_whole(self._path))
        self._file = self._stack.enter_context(
            pq.ParquetWriter(
                unfinished,
                SCHEMA,
                compression="zstd",
                use_dictionary=["source"],
                write_statistics=False,
                write_page_checksum=True,
            )
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._stack.__exit__(kind, error, trace)

    def write(self, document: Document) -> None:
        """Append one document."""
        text = replace_surrogates(document.text)
        size = len(text.encode())
        row = (document.id, document.source, text, encode_meta(document.meta))
        for column, value in zip(self._group, row, strict=True):
            column.append(value)
        self._size += size
        self.documents, self.bytes = self.documents + 1, self.bytes + size
        if self._size >= GROUP_BYTES or len(self._group[0]) >= GROUP_DOCUMENTS:
            self._flush()

    def _flush(self) -> None:
        if self._group[0]:
            self._file.write_batch(pa.record_batch(list(self._group), schema=SCHEMA))
            self._group, self._size = _empty_group(), 0


def read_documents(path: Path) -> Iterator[Document]:
    """Yield the documents of a file in their order."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for number in range(file.num_row_groups):
            group = file.read_row_group(number, use_threads=False)
            columns = [group.column(name).to_pylist() for name in SCHEMA.names]
            for identity, source, text, meta in zip(*columns, strict=True):
                yield Document(identity, source, text, orjson.loads(meta))


def read_origins(path: Path) -> Iterator[str]:
    """Yield for each of a file's documents the id of the one that it was made of, in the end, which
    is mostly its own; texts are not read.
    """
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for number in range(file.num_row_groups):
            group = file.read_row_group(number, columns=["id", "meta"], use_threads=False)
            pairs = zip(*(group.column(name).to_pylist() for name in ("id", "meta")), strict=True)
            for identity, meta in pairs:
                yield origin_of(identity, orjson.loads(meta)) if '"origin"' in meta else identity


def encode_meta(meta: dict[str, str | int | float | bool]) -> str:
    """Return the JSON of a document's meta, its keys sorted."""
    try:
        return orjson.dumps(meta, option=orjson.OPT_SORT_KEYS).decode()
    except (TypeError, ValueError):  # lone surrogates, integers beyond 64 bits
        return replace_surrogates(json.dumps(meta, sort_keys=True, ensure_ascii=False))


def _empty_group() -> tuple[list[str], ...]:
    return tuple([] for _ in SCHEMA)
