"""The file of an n-gram model: safetensors, written piece by piece and read where it lies on disk,
so that processes share what they read and a model may be larger than memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from data_pipeline.ngrams.model import Header, Level, NgramModel
from data_pipeline.ngrams.words import END, START, UNKNOWN, Vocabulary
from data_pipeline.storage.whole import written_whole
from maxlm.config.errors import UserError
from maxlm.files import open_regular

_HEADER = "maxlm"  # the key of the header in the file's metadata
_DTYPES = {"U64": np.uint64, "F32": np.float32, "U8": np.uint8}
_ITEMS_AT_ONCE = 2**20
_MOST_HEADER = 2**20
_CURE = "train one with `maxlm data train-ngrams`"


def save_ngrams(model: NgramModel, path: Path) -> None:
    """Write a model's file, in full or not at all."""
    words = np.frombuffer("\n".join(model.vocabulary.words).encode(), np.uint8)
    arrays = {
        f"{length}.{name}": array
        for length, level in enumerate(model.levels, 1)
        for name, array in level._asdict().items()
    }
    # The widest numbers first, so that all stand at multiples of their size.
    ordered = sorted({**arrays, "words": words}.items(), key=lambda item: -item[1].itemsize)
    names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
    table: dict[str, Any] = {"__metadata__": {_HEADER: model.header.model_dump_json()}}
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        about = {"dtype": names[array.dtype], "shape": [array.size], "data_offsets": [begin, end]}
        table[name] = about
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _, array in ordered:
            for start in range(0, array.size, _ITEMS_AT_ONCE):
                file.write(array[start : start + _ITEMS_AT_ONCE].tobytes())


def load_ngrams(path: Path | str) -> NgramModel:
    """Return the model of a file; its arrays stay on disk.

    Raises:
      UserError: it cannot be read, or is no such file.
    """
    try:
        arrays, metadata = _mapped(Path(path))
        header = Header.model_validate_json(metadata.get(_HEADER, ""))
        words = bytes(arrays["words"]).decode().split("\n")
        levels = [
            Level(*(arrays[f"{length}.{name}"] for name in Level._fields))
            for length in range(1, header.order + 1)
        ]
        vocabulary = Vocabulary(words)
        _check(vocabulary, levels)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {_CURE}") from None
    except KeyError as error:
        raise UserError(f"{path}: not an n-gram model: no array {error}; {_CURE}") from None
    except (ValueError, TypeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not an n-gram model: {first}; {_CURE}") from None
    return NgramModel(header, vocabulary, levels)


def _mapped(path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    """Return the arrays of a safetensors file, mapped, and its metadata.

    Raises:
      ValueError, KeyError, TypeError: it is none.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MOST_HEADER, size - 8):
            raise ValueError("it does not begin as one")
        table = json.loads(file.read(length))
    if not isinstance(table, dict):
        raise TypeError("its table is no object")
    metadata = table.pop("__metadata__", {})
    return {name: _array(path, 8 + length, size, entry) for name, entry in table.items()}, metadata


def _array(path: Path, start: int, size: int, entry: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    [count], (begin, end) = entry["shape"], entry["data_offsets"]
    if not (0 <= begin <= end <= size - start and end - begin == count * dtype.itemsize):
        raise ValueError("its arrays are not where its table says; the file is cut or damaged")
    if not count:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", offset=start + begin, shape=(count,))


def _check(vocabulary: Vocabulary, levels: list[Level]) -> None:
    """Raise a ValueError if the arrays do not fit each other."""
    if vocabulary.words[:3] != [UNKNOWN, START, END]:
        raise ValueError("its words do not begin with the three marks")
    sizes = [level.logs.size for level in levels]
    wanted = [(0 if not place else size, size) for place, size in enumerate(sizes)]
    found = [(level.keys.size, level.logs.size) for level in levels]
    backoffs = [level.backoffs.size for level in levels]
    if found != wanted or backoffs != [*sizes[:-1], 0] or sizes[0] != len(vocabulary.words):
        raise ValueError("its arrays do not fit each other")
