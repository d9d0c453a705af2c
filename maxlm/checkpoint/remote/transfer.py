"""One file to a store or back, hashed on its way, in chunks that can be held back; a write or read
that fails is tried again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from maxlm.checkpoint.remote.place import Takes, tried
from maxlm.files import open_regular

CHUNK_BYTES = 2**22


class Sum(NamedTuple):
    """What a file is known by.

    Attributes:
      size: bytes.
      sha256: of them, in hexadecimal.
    """

    size: int
    sha256: str


def upload(system: Any, source: Path, target: str, throttle: Takes) -> Sum:
    """Copy a file into a store; return what was read of it.

    Raises:
      StoreError: it failed each time.
      FileNotFoundError: the file is not there any more.
    """

    def once() -> Sum:
        digest, size = hashlib.sha256(), 0
        with open_regular(source) as file, system.open(target, "wb") as out:
            while chunk := file.read(CHUNK_BYTES):
                throttle.take(len(chunk))
                out.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        return Sum(size, digest.hexdigest())

    return tried(f"{target} was not written", once)


def download(system: Any, source: str, target: Path, throttle: Takes) -> Sum:
    """Copy a file out of a store, onto the disk; return what was written.

    Raises:
      StoreError: it failed each time.
      FileNotFoundError: it is not there.
    """

    def once() -> Sum:
        digest, size = hashlib.sha256(), 0
        with system.open(source, "rb") as file, target.open("wb") as out:
            while chunk := file.read(CHUNK_BYTES):
                throttle.take(len(chunk))
                out.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            out.flush()
            os.fsync(out.fileno())
        return Sum(size, digest.hexdigest())

    return tried(f"{source} was not read", once)
