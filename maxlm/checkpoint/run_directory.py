"""The folder of one run: made, checked, locked against a second job, swept of what a killed job
left; its tokenizer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from maxlm.checkpoint import layout
from maxlm.config.errors import UserError, make_possible
from maxlm.files import read_regular, write_whole
from maxlm.runtime import on_first_process

log = logging.getLogger(__name__)

# orbax searches for parts of a checkpoint by patterns that have its path in them, and tensorstore
# takes \\ for /: what is saved in such a folder cannot be read back.
UNSAFE = "*?[\\"

# Below this not even metrics and a small checkpoint fit; better said before the first step than
# after an hour.
MINIMUM_FREE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class RunDirectory:
    """The folder of a run; `open` it to own it."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """The run's own copy of its tokenizer: what lies at `data.tokenizer` may be trained again
        on other text.
        """
        return self.path / "tokenizer.model"

    @property
    def published(self) -> Path:
        """What an imported model came with besides its weights: tokenizer, generation settings."""
        return self.path / "published"

    def keep_tokenizer(self, model: bytes) -> None:
        """Copy the tokenizer's model file into the folder, if it is not there yet.

        Raises:
            UserError: another one is there, or it cannot be written.
        """
        on_first_process(lambda: self._keep_tokenizer(model))

    @classmethod
    @contextmanager
    def open(cls, path: Path | str) -> Iterator[RunDirectory]:
        """Own the folder `path` until the end of the block; process 0 holds the lock for all
        processes.

        Raises:
            UserError: its name is unsafe, it cannot be written, has too little space, or another
              job owns it.
        """
        run = cls(Path(path).absolute())
        refuse_unsafe("run_dir", run.path)
        locks: list[IO[str]] = []
        try:
            on_first_process(lambda: run._take(locks))
            yield run
        finally:
            for lock in locks:  # closing gives the lock back
                lock.close()

    def _keep_tokenizer(self, model: bytes) -> None:
        try:
            if not self.tokenizer.exists():
                write_whole(self.tokenizer, model)
            kept = read_regular(self.tokenizer)
        except OSError as error:
            raise UserError(
                f"{self.tokenizer}: {error.strerror or error}; choose another run_dir, or {make_possible(error)}"
            ) from error
        if kept != model:
            raise UserError(
                f"{self.tokenizer} is another tokenizer (SHA-256 {_sha256(kept)[:12]}) than data.tokenizer "
                f"({_sha256(model)[:12]}); choose another run_dir, or move that file away if no run needs it"
            )

    def _take(self, locks: list[IO[str]]) -> None:
        """Do all of `open` that touches the disk; what must stay open goes to `locks`."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            locks.append((self.path / "lock").open("a+", encoding="utf-8"))
            self._lock(locks[-1])
            _check_writable(self.checkpoints)
        except OSError as error:
            blocked = f" ({error.filename})" if error.filename not in (None, str(self.path)) else ""
            raise UserError(
                f"run_dir={self.path} cannot be written: {error.strerror or error}{blocked}; choose another run_dir, "
                f"or {make_possible(error)}"
            ) from error
        free = shutil.disk_usage(self.path).free
        if free < MINIMUM_FREE_BYTES:
            raise UserError(
                f"run_dir={self.path} has {free / 2**20:.1f} MiB left on its disk, a run needs at least "
                f"{MINIMUM_FREE_BYTES / 2**20:.0f} MiB; make room or choose another run_dir"
            )
        for leftover in layout.sweep(self.checkpoints, deletions=True):
            log.warning(
                "removed %s: an unfinished save or deletion of a job that was killed", leftover
            )

    def _lock(self, file: IO[str]) -> None:
        """Lock `file` for this process; the kernel gives the lock back however the process ends.

        A record lock, not flock: forked data workers that outlive a killed trainer must not hold on
        to it.
        """
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise UserError(
                f"run_dir={self.path} is in use by another job ({_owner(file.read())}); wait for it, stop it, "
                "or choose another run_dir"
            ) from error
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()


def refuse_unsafe(name: str, path: Path) -> None:
    """Refuse a folder whose checkpoints could not be read back; `name` is the setting of it.

    Raises:
        UserError: there are signs in its path that the storage library takes for patterns.
    """
    unsafe = [sign for sign in UNSAFE if sign in str(path)]
    if unsafe:
        raise UserError(
            f"{name}={path}: checkpoints in a folder with {' or '.join(unsafe)} in its path could not be read "
            f"back; choose another {name}"
        )


def tokenizer_to_open(run_dir: Path | str, named: str) -> str:
    """Return the path of the tokenizer to start with: the run's own copy if it has checkpoints,
    else `named`.
    """
    run = RunDirectory(Path(run_dir).absolute())
    resumes = on_first_process(
        lambda: run.tokenizer.exists() and bool(layout.saved_steps(run.checkpoints))
    )
    return str(run.tokenizer) if resumes else named


def tokenizer_of_checkpoint(run_dir: Path | str, record: Mapping[str, Any]) -> Path:
    """Return the path of a run's tokenizer, which is proved to be the one a checkpoint was trained
    with.

    Args:
        run_dir: the folder of the run.
        record: of the checkpoint.

    Raises:
        UserError: it is missing, cannot be read, or is another one; or the checkpoint does not say
          which it was.
    """
    path, expected = RunDirectory(Path(run_dir)).tokenizer, record.get("tokenizer")
    if expected is None:
        raise UserError(
            f"{run_dir}: the checkpoint of step {record['step']} is of an earlier version, which did not say which "
            "tokenizer it was trained with; train on for a step with: maxlm train RUN.yaml"
        )
    try:
        found = _sha256(read_regular(path))
    except OSError as error:
        raise UserError(
            f"{path}: the run's tokenizer cannot be read: {error.strerror}; put back the file with SHA-256 {expected}"
        ) from error
    if found != expected:
        raise UserError(
            f"{path} is not the tokenizer that the checkpoint of step {record['step']} was trained with: its SHA-256 "
            f"is {found[:12]}..., not {expected}; put back that file"
        )
    return path


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on host {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "which has not written its name yet"


def _check_writable(directory: Path) -> None:
    """Write, flush and delete a small file; raises OSError."""
    probe = directory / f"probe.{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(b"maxlm")
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)
