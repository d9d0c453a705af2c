"""Replace the contents of a prepared folder: everything is written beside it and then renamed into
place.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.manifest import MANIFEST_NAME
from data_pipeline.storage.disk import disk_errors
from data_pipeline.tokens.order import SPLITS
from maxlm.config.errors import UserError
from maxlm.data.shards import INDEX_NAME

STAGING_NAME = ".preparing"
INPUTS_NAME, REPORT_NAME, DROPPED_NAME = "inputs.jsonl", "report.json", "dropped.parquet"
ABOUT = (INPUTS_NAME, REPORT_NAME, DROPPED_NAME)


@contextmanager
def staging(folder: Path, *, replace: bool, afresh: bool) -> Iterator[Path]:
    """Yield a folder to write the splits to, on the disk where they will stay; remove it in the
    end. If the block fails, it stays, so that a later try goes on where this one was.

    Args:
      folder: the prepared folder.
      replace: shards that are there may go.
      afresh: what an earlier try has left may not be used.

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
            lock_folder(lock, folder)
            _check_replaceable(folder, replace or interrupted)
            if afresh:
                for leftover in stage.iterdir():
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            yield stage
            shutil.rmtree(stage)
        finally:
            os.close(lock)


def publish(stage: Path, folder: Path) -> None:
    """Rename the splits, and the files about them, into place."""
    for old in stage.glob("old-*"):  # of a run that was stopped here
        shutil.rmtree(old)
    for split in SPLITS:
        if (folder / split).exists():
            (folder / split).rename(stage / f"old-{split}")
        (stage / split).rename(folder / split)
    for name in ABOUT:
        (stage / name).replace(folder / name)


def lock_folder(descriptor: int, folder: Path) -> None:
    """Lock an open folder until it is closed.

    Raises:
      UserError: another process has locked it; the message names `folder`.
    """
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
