"""Replace the contents of a prepared folder: everything is written beside it and then renamed into
place.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.manifest import MANIFEST_NAME
from maxlm.config.errors import UserError
from maxlm.data.shards import INDEX_NAME

STAGING_NAME = ".preparing"
SPLITS = ("train", "validation")


@contextmanager
def staging(folder: Path, *, replace: bool) -> Iterator[Path]:
    """Yield an empty folder to write the splits to, on the disk where they will stay; remove it in
    the end.

    Raises:
      UserError: another process is preparing the folder, something else is there, or the disk
        refuses.
    """
    stage = folder / STAGING_NAME
    interrupted = stage.is_dir()
    with disk_errors(folder):
        stage.mkdir(parents=True, exist_ok=True)
        lock = os.open(stage, os.O_RDONLY)
        try:
            _lock(lock, folder)
            _check_replaceable(folder, replace or interrupted)
            _empty(stage)
            try:
                yield stage
            except BaseException:
                # The folder itself stays: it says that what is beside it may be unfinished.
                _empty(stage)
                raise
            shutil.rmtree(stage)
        finally:
            os.close(lock)


def publish(stage: Path, folder: Path) -> None:
    """Rename the splits into place."""
    for split in SPLITS:
        if (folder / split).exists():
            (folder / split).rename(stage / f"old-{split}")
        (stage / split).rename(folder / split)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into a message for the user."""
    cures = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space",
        errno.EROFS: "use another path",
        errno.EACCES: "use another path, or change its permissions",
        errno.EPERM: "use another path, or change its permissions",
        errno.EEXIST: "use another path",
        errno.ENOTDIR: "use another path",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in cures:
            raise
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; {cures[error.errno]}"
        ) from None


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{folder}: another `maxlm prepare` is writing here; wait for it, or end it"
        ) from None


def _check_replaceable(folder: Path, replace: bool) -> None:
    for split in SPLITS:
        path = folder / split
        if path.exists() and not (path / INDEX_NAME).is_file():
            raise UserError(
                f"{path}: something other than token shards is there; move it away, or use another path"
            )
        if path.exists() and not replace:
            raise UserError(
                f"{path}: token shards without {MANIFEST_NAME} are there; use another path, "
                "or replace them with: maxlm prepare RUN.yaml --force"
            )


def _empty(stage: Path) -> None:
    for leftover in stage.iterdir():
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
