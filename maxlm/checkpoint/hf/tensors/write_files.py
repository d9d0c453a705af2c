"""Write safetensors files: shards of limited size, an index, and a list of SHA-256 sums.

A folder appears under its name when everything in it is written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from maxlm.checkpoint.hf.tensors.read_files import DTYPES, INDEX, SINGLE
from maxlm.config.errors import UserError, make_possible

SHARD_BYTES = 5 * 10**9
SUMS = "SHA256SUMS"

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Slot(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which gets the name `target` when the block ends without an error.

    Raises:
      UserError: something is in its place, or the disk cannot take what is written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already; choose another name, or move it away")
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        if target.is_dir():
            target.rmdir()
        unfinished.rename(target)
    except OSError as error:
        cause = error.strerror or str(error)
        text = f"{target} cannot be written: {cause}; choose another folder"
        raise UserError(f"{text}, or {make_possible(error)}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class TensorWriter:
    """Tensors go into shards in the order in which they were announced."""

    def __init__(
        self,
        folder: Path,
        slots: Sequence[Slot],
        dtype: np.dtype,
        *,
        shard_bytes: int = SHARD_BYTES,
    ):
        self._folder, self._dtype = folder, dtype
        shards = _shards(slots, dtype.itemsize, shard_bytes)
        self._files = _file_names(len(shards))
        self._queue = [
            (file, slot) for file, shard in zip(self._files, shards, strict=True) for slot in shard
        ]
        self._shards = dict(zip(self._files, shards, strict=True))
        self._open: tuple[str, BinaryIO] | None = None
        self._next = 0

    def write(self, name: str, values: np.ndarray) -> None:
        """Write the next tensor.

        Raises:
          UserError: a value does not fit the dtype.
        """
        file, slot = self._queue[self._next]
        assert (slot.name, slot.shape) == (name, values.shape), (slot, name, values.shape)
        self._next += 1
        if self._open is None or self._open[0] != file:
            self._close()
            self._open = file, self._begin(file)
        with np.errstate(over="ignore"):  # told below, with the tensor's name
            cast = values.astype(self._dtype)
        lost = np.isfinite(values) & ~np.isfinite(cast) if cast.dtype != values.dtype else None
        if lost is not None and lost.any():
            worst = float(np.abs(values[lost]).max())
            raise UserError(
                f"{name} has {worst:g}, which {self._dtype} cannot hold; use --dtype bfloat16"
            )
        self._open[1].write(np.ascontiguousarray(cast).reshape(-1).view(np.uint8).data)

    def finish(self) -> None:
        """Close the last shard, and write the index if there are several."""
        self._close()
        assert self._next == len(self._queue), "all announced tensors have been written"
        if len(self._files) > 1:
            weight_map = {slot.name: file for file, slot in self._queue}
            size = sum(math.prod(slot.shape) for _, slot in self._queue) * self._dtype.itemsize
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            write_json(self._folder / INDEX, index)

    def _begin(self, file: str) -> BinaryIO:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for slot in self._shards[file]:
            begin, end = end, end + math.prod(slot.shape) * self._dtype.itemsize
            entry = {"dtype": _NAMES[self._dtype], "shape": list(slot.shape)}
            header[slot.name] = {**entry, "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        stream = (self._folder / file).open("wb")
        stream.write(len(text).to_bytes(8, "little") + text)
        return stream

    def _close(self) -> None:
        if self._open is not None:
            stream = self._open[1]
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
            self._open = None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file as transformers does."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file, as `sha256sum -c` reads them."""
    lines = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _shards(slots: Sequence[Slot], itemsize: int, limit: int) -> list[list[Slot]]:
    shards: list[list[Slot]] = [[]]
    size = 0
    for slot in slots:
        own = math.prod(slot.shape) * itemsize
        if shards[-1] and size + own > limit:
            shards.append([])
            size = 0
        shards[-1].append(slot)
        size += own
    return shards


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
