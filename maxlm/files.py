"""Files on disk: only regular ones are opened, a write is there in full or not at all, two paths
may be one place.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# The library that stores checkpoints searches for parts of one by patterns that have its path in
# them, and takes \\ for /.
_PATTERNS = "*?[\\"

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: Path | str) -> BinaryIO:
    """Open a regular file for reading, and refuse what reading could wait for or never end: FIFOs,
    devices, sockets.

    Raises:
      OSError: it cannot be opened, or is no regular file.
    """
    # Without O_NONBLOCK the opening itself waits until somebody writes into a FIFO. It changes
    # nothing for files.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, f"it is {kind_of(mode)}, not a regular file", str(path))


def kind_of(mode: int) -> str:
    """Say what a `st_mode` stands for: a FIFO, a device, a socket, a folder, a file."""
    return _KINDS.get(stat.S_IFMT(mode), "a file")


def read_regular(path: Path | str) -> bytes:
    """Return the contents of a regular file.

    Raises:
      OSError: it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        return file.read()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there in full or not at all, whenever the process or the machine
    stops.

    Raises:
      OSError: it cannot be written.
    """
    if not path.name:  # `.` and `/`
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def place_of(path: str) -> str:
    """Return one spelling for all paths of a file or folder: absolute, without links, `..` and
    trailing slashes.
    """
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # such as a zero byte: what opens it will say so
        return path


def why_unstorable(path: str) -> str | None:
    """Say what is in the path of a folder for which checkpoints in it could not be read back; None
    if nothing is. Spaces and letters of any alphabet are fine.
    """
    path = str(Path(path).absolute())  # what stands before a relative one counts too
    signs = [sign for sign in _PATTERNS if sign in path]
    if signs:
        return " and ".join(signs)
    if "gs:/" in f"{path}/":  # which is taken for the start of a bucket's address
        return "a name that ends in gs:"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "bytes that are no UTF-8"
    return None


def flush_file(path: Path) -> None:
    """Put a file's contents on the disk, and forget what memory keeps of them: who reads it next
    reads what is on the disk.

    Raises:
      OSError: it cannot be opened, or the disk failed.
    """
    with open_regular(path) as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def flush_folder(path: Path) -> None:
    """Put the names in a folder on the disk, where the file system can.

    Raises:
      OSError: it cannot be opened, or the disk failed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)
