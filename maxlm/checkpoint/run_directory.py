"""The folder of one run: made, checked, locked against a second job, swept of what a killed job
left; its tokenizer.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from maxlm.checkpoint import layout
from maxlm.config.errors import UserError, make_possible
from maxlm.files import read_regular, why_unstorable, write_whole
from maxlm.runtime import on_first_process

log = logging.getLogger(__name__)

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
        """Folder of the run's own copy of its tokenizer: what lies at `data.tokenizer` may be
        trained again on other text.
        """
        return self.path / "tokenizer"

    @property
    def published(self) -> Path:
        """What an imported model came with besides its weights: tokenizer, generation settings."""
        return self.path / "published"

    def keep_tokenizer(self, files: Mapping[str, bytes]) -> None:
        """Copy the tokenizer's files into its folder, if it is not there yet.

        Args:
            files: their contents by name.

        Raises:
            UserError: another one is there, or it cannot be written.
        """
        on_first_process(lambda: self._keep_tokenizer(files))

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
                # What a full disk has not taken is tried again, and refused.
                with suppress(OSError):
                    lock.close()

    def _keep_tokenizer(self, files: Mapping[str, bytes]) -> None:
        try:
            if not self.tokenizer.exists():
                self._write_tokenizer(files)
            kept = {path.name: read_regular(path) for path in self.tokenizer.iterdir()}
        except OSError as error:
            raise UserError(
                f"{self.tokenizer}: {error.strerror or error}; choose another run_dir, or {make_possible(error)}"
            ) from error
        if kept != files:
            names = sorted(name for name in {*kept, *files} if kept.get(name) != files.get(name))
            raise UserError(
                f"{self.tokenizer} is another tokenizer than data.tokenizer ({', '.join(names)}); choose another "
                "run_dir, or move that folder away if no run needs it"
            )

    def _write_tokenizer(self, files: Mapping[str, bytes]) -> None:
        """Write all files beside, then give their folder its name: it is there in full or not at all."""
        unfinished = self.tokenizer.with_name("tokenizer.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            for name, data in files.items():
                write_whole(unfinished / name, data)
            unfinished.rename(self.tokenizer)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _take(self, locks: list[IO[str]]) -> None:
        """Do all of `open` that touches the disk; what must stay open goes to `locks`."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            locks.append((self.path / "lock").open("a+", encoding="utf-8"))
            self._lock(locks[-1])
            _check_writable(self.checkpoints)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._refuse_a_full_disk(error)
            blocked = f" ({error.filename})" if error.filename not in (None, str(self.path)) else ""
            raise UserError(
                f"run_dir={self.path} cannot be written: {error.strerror or error}{blocked}; choose another run_dir, "
                f"or {make_possible(error)}"
            ) from error
        self._refuse_a_full_disk()
        for leftover in layout.sweep(self.checkpoints, deletions=True):
            log.warning(
                "removed %s: an unfinished save or deletion of a job that was killed", leftover
            )

    def _refuse_a_full_disk(self, error: OSError | None = None) -> None:
        """Refuse a disk with too little room; `error`: it has refused a file already."""
        existing = next(path for path in (self.path, *self.path.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if free < MINIMUM_FREE_BYTES:
            full = "cannot be written: the disk is full. It " if error else ""
            raise UserError(
                f"run_dir={self.path} {full}has {free / 2**20:.1f} MiB left on its disk, a run needs at least "
                f"{MINIMUM_FREE_BYTES / 2**20:.0f} MiB; make room or choose another run_dir"
            ) from error

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
        UserError: something in its path is none of what the storage library can take.
    """
    unsafe = why_unstorable(str(path))
    if unsafe is not None:
        raise UserError(
            f"{name}={str(path)!a}: checkpoints in a folder with {unsafe} in its path could not be read "
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
