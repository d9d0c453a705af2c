"""Which documents the tokens of a shard are from: ids in a Parquet file beside each shard that
`maxlm prepare` wrote.
"""

from __future__ import annotations

import bisect
import itertools
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from maxlm.config.errors import UserError
from maxlm.data.shards.reader import TokenShards

IDS_SCHEMA = pa.schema([("id", pa.string()), ("tokens", pa.uint32())])


class Span(NamedTuple):
    """A document's tokens [start, stop) of a folder's stream."""

    id: str
    start: int
    stop: int


def ids_name(shard: str) -> str:
    """Return the name of the file that lies beside a shard."""
    return f"{Path(shard).stem}.documents.parquet"


def trace(shards: TokenShards, start: int, count: int) -> list[Span]:
    """Return the documents of tokens [start, start + count) of a folder's stream, in order.

    Raises:
      UserError: the folder does not say which documents it holds.
    """
    entries = shards.index.shards
    ends = list(itertools.accumulate(entry.tokens for entry in entries))
    found: list[Span] = []
    number = bisect.bisect_right(ends, start)
    while number < len(entries) and ends[number] - entries[number].tokens < start + count:
        path = shards.folder / ids_name(entries[number].file)
        if not path.is_file():
            raise UserError(
                f"{path}: there is no such file, so tokens cannot be traced to documents; "
                "run: maxlm prepare RUN.yaml --force"
            )
        table = pq.read_table(path)
        place = ends[number] - entries[number].tokens
        for identity, size in zip(
            table["id"].to_pylist(), table["tokens"].to_pylist(), strict=True
        ):
            if place < start + count and place + size > start:
                found.append(Span(identity, place, place + size))
            place += size
        number += 1
    return found
