"""Evaluation files to items: every text in a record, whatever its key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet

from maxlm.config.errors import UserError
from maxlm.files import open_regular, read_regular

_SUFFIXES = (".jsonl", ".json", ".parquet", ".txt", ".md")


@dataclass(frozen=True)
class Item:
    """A question, or whatever a benchmark's record is.

    Attributes:
      benchmark: its name.
      place: its file and number, for people.
      texts: the texts in it.
    """

    benchmark: str
    place: str
    texts: tuple[str, ...]


def check_files(benchmarks: Mapping[str, Sequence[str]]) -> None:
    """Look for the files, without reading them.

    Raises:
      UserError: some are not there, or of no kind that can be read.
    """
    wrong = []
    for path in (Path(path) for paths in benchmarks.values() for path in paths):
        if not path.is_file():
            wrong.append(f"{path} is no file; give the path of one")
        elif path.suffix.lower() not in _SUFFIXES:
            wrong.append(f"{path} must end in one of {' '.join(_SUFFIXES)}; convert it")
    if wrong:
        raise UserError("\n    ".join(wrong))


def read_items(benchmarks: Mapping[str, Sequence[str]]) -> Iterator[Item]:
    """Yield the items of all benchmarks, in order.

    Raises:
      UserError: a file cannot be read as what its name says.
    """
    for benchmark, paths in benchmarks.items():
        for path in map(Path, paths):
            try:
                for number, record in enumerate(_records(path)):
                    yield Item(benchmark, f"{path.name} {number + 1}", tuple(_texts(record)))
            except (OSError, ValueError, RecursionError) as error:
                raise UserError(f"{path}, of {benchmark}: {error}; mend the file") from error


def _records(path: Path) -> Iterator[Any]:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        with open_regular(path) as file:
            for line in file:
                if line.strip():
                    yield orjson.loads(line)
    elif suffix == ".json":
        contents = json.loads(read_regular(path))
        yield from contents if isinstance(contents, list) else [contents]
    elif suffix == ".parquet":
        with open_regular(path) as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                yield from batch.to_pylist()
    else:
        yield read_regular(path).decode(errors="replace")


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for inner in value:
            yield from _texts(inner)
