"""Parquet files: a text a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.readers.record import MAX_RECORD_BYTES, Found, Unread, scalars
from data_pipeline.readers.streams import open_input
from maxlm.config.pipeline.raw import RawTextConfig

ROWS = 256  # that are held at a time


def read_parquet(path: str, raw: RawTextConfig) -> Iterator[Found | Unread]:
    """Yield the texts of a file's column `raw.text_key`; rows are numbered from 1."""
    number = 0
    try:
        with open_input(path) as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
            if raw.text_key not in file.schema_arrow.names:
                yield Unread("", f"Parquet file without a column `{raw.text_key}`")
                return
            names = [
                name for name in (raw.text_key, *raw.meta_keys) if name in file.schema_arrow.names
            ]
            for batch in file.iter_batches(ROWS, columns=names, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield _row(f":{number}", row, raw)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the file's
        yield Unread(f":{number + 1}" if number else "", "damaged Parquet file")


def _row(place: str, row: dict[str, Any], raw: RawTextConfig) -> Found | Unread:
    text = row[raw.text_key]
    if not isinstance(text, str):
        return Unread(place, f"row without a `{raw.text_key}`")
    if len(text) > MAX_RECORD_BYTES:
        return Unread(place, "text too long")
    return Found(place, text, scalars(row, raw.meta_keys))
