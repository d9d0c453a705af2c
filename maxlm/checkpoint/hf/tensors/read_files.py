"""Read safetensors files piece by piece: headers are checked before any value is read, and nothing
in them can run.

The format is https://huggingface.co/docs/safetensors: eight bytes with the header's length, a
header in JSON (name -> dtype, shape, data_offsets), values. Pickled weights (*.bin, *.pt, *.pth)
can run code when they are opened, and are refused.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import ml_dtypes
import numpy as np

from maxlm.config.errors import UserError
from maxlm.files import open_regular, read_regular

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Names of dtypes in headers; what is not here cannot be read."""

_MAX_HEADER = 100_000_000  # as the format says
_BLOCK_BYTES = 16 * 2**20
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Tensor(Protocol):
    """A published tensor that is not read yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def nbytes(self) -> int:
        """Bytes of it on disk."""

    def read(self, region: Sequence[slice]) -> np.ndarray:
        """Return the values of a box of it."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, from `begin` on."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes of it on disk."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, region: Sequence[slice]) -> np.ndarray:
        """Return the values of a box of it, which has a start and a stop in every dimension.

        Rows of the first dimension are read a few at a time where the box has only a part of
        each, so that no more than the box and a block of rows are in memory.

        Raises:
          UserError: the file cannot be read.
        """
        if not self.shape:
            return self._rows(0, 1, ()).reshape(())
        first, *rest = region
        whole = all(
            part.start == 0 and part.stop == size
            for part, size in zip(rest, self.shape[1:], strict=True)
        )
        if whole:
            return self._rows(first.start, first.stop, self.shape[1:])
        out = np.empty([part.stop - part.start for part in region], self.dtype)
        row_bytes = max(self.nbytes // self.shape[0], 1)
        step = max(_BLOCK_BYTES // row_bytes, 1)
        for start in range(first.start, first.stop, step):
            stop = min(start + step, first.stop)
            rows = self._rows(start, stop, self.shape[1:])
            out[start - first.start : stop - first.start] = rows[(slice(None), *rest)]
        return out

    def _rows(self, start: int, stop: int, row: tuple[int, ...]) -> np.ndarray:
        out = np.empty((stop - start, *row), self.dtype)
        offset = self.begin + start * math.prod(row) * self.dtype.itemsize
        try:
            with open_regular(self.path) as file:
                file.seek(offset)
                got = cast(io.BufferedReader, file).readinto(out.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        if got != out.nbytes:
            raise UserError(
                f"{self.path} has become shorter while it was read; fetch the file again"
            )
        return out


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a folder of published weights by name, from the headers of its files.

    Raises:
      UserError: there are no safetensors files, or what is wrong with them, all files at once.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one with config.json and {SINGLE}")
    tensors: dict[str, StoredTensor] = {}
    problems = list[str]()
    expected = _expected_files(folder)
    for name, wanted in expected.items():
        try:
            found = _read_header(folder / name)
        except _WrongFileError as error:
            problems.append(f"{name}: {error}")
            continue
        lacking = sorted(wanted - found.keys())
        if lacking:
            problems.append(f"{name}: {INDEX} says it has {lacking[0]}, and it has not")
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            problems.append(f"{name}: {twice[0]} is in {tensors[twice[0]].path.name} too")
        tensors.update(found)
    if problems:
        listed = "\n  ".join(problems)
        raise UserError(f"{folder}: damaged weights; fetch these files again:\n  {listed}")
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of a folder of published weights.

    Raises:
      UserError: it is missing, cannot be read, or is no JSON object with each key once.
    """
    try:
        value = json.loads(read_regular(path), object_pairs_hook=_each_once)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no valid JSON: {error}; fetch the file again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must be a JSON object; fetch the file again")
    return value


class _WrongFileError(Exception):
    """What is wrong with a file."""


def _expected_files(folder: Path) -> dict[str, set[str]]:
    """Return the files with weights, and the tensors that the index says are in each."""
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{folder / INDEX}: has no weight_map; fetch the file again")
        files: dict[str, set[str]] = {}
        for tensor, name in weight_map.items():
            # A name with a folder in it could lead anywhere.
            if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
                raise UserError(f"{folder / INDEX}: {name!r} is no name of a safetensors file")
            files.setdefault(name, set()).add(tensor)
        return files
    if (folder / SINGLE).exists():
        return {SINGLE: set()}
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder} has weights as {pickles[0]}, a pickle, which can run any code when it is "
            f"opened; take the repository's {SINGLE} instead, or, if you trust the file, convert "
            "it where transformers is installed: model.save_pretrained(FOLDER)"
        )
    raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}; give a folder with weights")


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file, whose places have been proved to be within it."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER, size - 8):
                raise _WrongFileError(f"its header of {length} bytes is more than the file has")
            header = json.loads(file.read(length), object_pairs_hook=_each_once)
    except OSError as error:
        raise _WrongFileError(f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise _WrongFileError(f"its header is no valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _WrongFileError("its header is no JSON object")
    begin = 8 + length
    header.pop("__metadata__", None)
    tensors = {name: _stored(name, entry, path, begin) for name, entry in header.items()}
    _check_places(tensors, size)
    return tensors


def _stored(name: str, entry: Any, path: Path, begin: int) -> StoredTensor:
    try:
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        start, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        known = ", ".join(DTYPES)
        raise _WrongFileError(f"{name} is {entry}, not a tensor of dtype {known}") from None
    numbers = (*shape, start, end)
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise _WrongFileError(f"{name} has a shape or place that is no number: {entry}")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise _WrongFileError(f"{name} has {end - start} bytes, not those of {entry}")
    return StoredTensor(path, dtype, shape, begin + start)


def _check_places(tensors: Mapping[str, StoredTensor], size: int) -> None:
    """Refuse tensors that overlap, have gaps between them, or end beyond the file."""
    end = min((tensor.begin for tensor in tensors.values()), default=size)
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
        if tensor.begin != end:
            raise _WrongFileError(f"{name} does not begin where the tensor before it ends")
        end = tensor.begin + tensor.nbytes
    if end != size:
        raise _WrongFileError(f"its tensors end at byte {end}, the file at {size}")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return found
