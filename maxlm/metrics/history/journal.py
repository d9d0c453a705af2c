"""Files of JSON lines that are only ever added to: a kill loses no line but the one being written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maxlm.files import open_regular


class Lines(NamedTuple):
    """What a journal holds.

    Attributes:
      records: its lines, in order.
      damaged: how many lines are none: torn by a kill, or changed since.
    """

    records: list[dict[str, Any]]
    damaged: int


class Journal:
    """Add lines to a file; each is handed to the operating system at once, in one piece."""

    def __init__(self, path: Path):
        """Open the file, or make it.

        Raises:
          OSError: it cannot be written, or is no regular file.
        """
        if path.exists():
            open_regular(path).close()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")  # what a kill has torn is a line of its own

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line.

        Args:
          record: whatever it holds that JSON has not is written as text.

        Raises:
          OSError: the disk is full, say.
        """
        line = json.dumps(_plain(record), allow_nan=False).encode() + b"\n"
        written = os.write(self._descriptor, line)
        if written < len(line):
            os.write(self._descriptor, line[written:])  # says why: no room is left

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_journal(path: Path) -> Lines:
    """Return the lines of a journal; none where there is no file.

    Raises:
      OSError: it cannot be read, or is no regular file.
    """
    if not path.exists():
        return Lines([], 0)
    records, damaged = list[dict[str, Any]](), 0
    with open_regular(path) as file:
        for line in file:
            record = _parsed(line)
            if record is not None:
                records.append(record)
            elif line.strip():
                damaged += 1
    return Lines(records, damaged)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of an array library
        return _plain(value.item())
    return str(value)
