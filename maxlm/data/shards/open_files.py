"""Many files, few descriptors: those read last stay open, the others are opened again when they are
read, and must still be the same files.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from maxlm.files import open_regular

MOST_OPEN = 64  # a process may have 1,024, and a run opens several folders and much else


class ReplacedError(OSError):
    """A file is not the one that was there at first."""


class _Identity(NamedTuple):
    device: int
    inode: int
    size: int
    modified_ns: int


class OpenFiles:
    """Random access to files by their number, from any thread.

    Opening checks that all are regular files. Up to `MOST_OPEN` files stay open for good, so that
    a folder of so few does not change under its reader when it is replaced.

    Raises:
      OSError: one of them is not there, or no regular file.
    """

    def __init__(self, paths: Sequence[Path]):
        self._paths = list(paths)
        self._open: OrderedDict[int, int] = (
            OrderedDict()
        )  # number: descriptor, read last at the end
        self._readers = [0] * len(paths)
        self._lock = threading.Lock()
        self._known: list[_Identity] = []
        weakref.finalize(self, _close_all, self._open)
        for number in range(len(paths)):
            descriptor = self._descriptor(number)
            self._known.append(_identity(descriptor))
            self._readers[number] = 0

    def size(self, number: int) -> int:
        """Return the bytes that a file had when it was first opened."""
        return self._known[number].size

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Return bytes of a file, fewer where it ends.

        Raises:
          OSError: they cannot be read.
          ReplacedError: another file is in its place.
        """
        with self._lock:
            descriptor = self._descriptor(number)
        try:
            return os.pread(descriptor, size, offset)
        finally:
            with self._lock:
                self._readers[number] -= 1

    def _descriptor(self, number: int) -> int:
        """Return a file's descriptor, which stays open until its reader is done."""
        if number not in self._open:
            self._make_room()
            with open_regular(self._paths[number]) as file:
                descriptor = os.dup(file.fileno())
            if number < len(self._known) and _identity(descriptor) != self._known[number]:
                os.close(descriptor)
                raise ReplacedError(f"{self._paths[number]}: it was replaced or changed")
            self._open[number] = descriptor
        self._open.move_to_end(number)
        self._readers[number] += 1
        return self._open[number]

    def _make_room(self) -> None:
        if len(self._open) >= MOST_OPEN:
            idle = next((number for number in self._open if not self._readers[number]), None)
            if idle is not None:  # else more readers than files may be open: let there be one more
                os.close(self._open.pop(idle))


def _identity(descriptor: int) -> _Identity:
    status = os.fstat(descriptor)
    return _Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _close_all(descriptors: OrderedDict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
