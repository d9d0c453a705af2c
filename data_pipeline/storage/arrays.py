"""Named arrays of numbers in one safetensors file: keys, verdicts, tokens; read whole or in part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from data_pipeline.storage.whole import written_whole

_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F32": np.float32,
    "F64": np.float64,
}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays; the file is there in full or not at all."""
    with written_whole(path) as unfinished:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())},
            unfinished,
        )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a file."""
    return dict(load_file(path))


def read_rows(path: Path, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Return rows [start, stop) of one array; nothing else is read."""
    with safe_open(path, framework="numpy") as file:
        stored = file.get_slice(name)
        size, *more = stored.get_shape()
        if not range(size)[start:stop]:  # safetensors refuses slices of nothing
            return np.empty((0, *more), _DTYPES[stored.get_dtype()])
        rows: np.ndarray = stored[start:stop]
        return rows


def array_names(path: Path) -> list[str]:
    """Return the names of a file's arrays, sorted."""
    with safe_open(path, framework="numpy") as file:
        return sorted(file.keys())


def count_rows(path: Path, name: str) -> int:
    """Return how many rows an array has, without reading it."""
    with safe_open(path, framework="numpy") as file:
        return int(file.get_slice(name).get_shape()[0])
