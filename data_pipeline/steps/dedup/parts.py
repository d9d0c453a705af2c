"""What the parts of a reduction must know besides their number, and what they found, cut by shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.dedup.sorted_keys import slice_of_shard
from data_pipeline.documents import Document
from data_pipeline.steps.step import Work
from data_pipeline.storage.arrays import (
    array_names,
    count_rows,
    read_arrays,
    read_rows,
    write_arrays,
)


@dataclass(frozen=True)
class Plan:
    """Into how many parts a reduction is cut, and which shards' rows may not go.

    Attributes:
      parts: their number.
      protected: bool (num_shards,).
    """

    parts: int
    protected: np.ndarray

    @classmethod
    def of(cls, work: Work, parts: int) -> Plan:
        """Return the plan for a step's input."""
        return cls(parts, np.array([shard.source in work.protected for shard in work.shards], bool))

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read what `write` wrote."""
        arrays = read_arrays(path)
        return cls(int(arrays["parts"][0]), arrays["protected"])

    def write(self, path: Path) -> Path:
        """Write the plan to a file and return its path."""
        write_arrays(path, {"parts": np.array([self.parts]), "protected": self.protected})
        return path

    @property
    def precedence(self) -> list[int]:
        """The shards in the order in which they keep their rows: protected ones first."""
        return np.argsort(~self.protected, kind="stable").tolist()


def rows_in(path: Path, table: str | None = None) -> int:
    """Return how many rows a file of keys (of its table) or of copies has, without reading them."""
    return count_rows(path, "rows" if table is None else f"{table}.row")


def found_in(parts: Sequence[Path], shard: int) -> dict[str, np.ndarray]:
    """Return what all parts found in a shard, by ascending row.

    Args:
      parts: safetensors files of equally long arrays, `rows` among them: ascending row names.
        Two-dimensional ones are texts as bytes, filled up with zeros. What is called `report.*`
        is not the shards' and left out.
    """
    found = [_slice(path, shard) for path in parts]
    arrays = {name: _concatenated([one[name] for one in found]) for name in found[0]}
    order = np.argsort(arrays["rows"], kind="stable")
    return {name: array[order] for name, array in arrays.items()}


def found_by_shard(parts: Sequence[Path], num_shards: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield what all parts found, shard by shard."""
    return (found_in(parts, shard) for shard in range(num_shards))


def documents_at(documents: Iterable[Document], rows: np.ndarray) -> Iterator[Document]:
    """Yield the documents at some rows, ascending, of a shard."""
    wanted = set(rows.tolist())
    return (document for row, document in enumerate(documents) if row in wanted)


def _slice(path: Path, shard: int) -> dict[str, np.ndarray]:
    where = slice_of_shard(path, "rows", shard)
    names = [name for name in array_names(path) if not name.startswith("report.")]
    return {name: read_rows(path, name, where.start, where.stop) for name in names}


def _concatenated(arrays: Sequence[np.ndarray]) -> np.ndarray:
    if arrays[0].ndim == 2:
        width = max(array.shape[1] for array in arrays)
        arrays = [np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in arrays]
    return np.concatenate(arrays)
