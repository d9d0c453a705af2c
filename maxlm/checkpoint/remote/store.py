"""Checkpoints in a store: a whole one has a marker, which is written last and says of each file its
size and SHA-256.

    run.json                    which run the store is of
    run/metrics.jsonl, ...      the run's small files
    checkpoints/00000100/       the files of a checkpoint, as in RUN_DIR
    checkpoints/00000100.whole.json
    checkpoints/00000200.later.json    of one that the run has gone back behind: it is never fetched
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from maxlm.checkpoint import layout
from maxlm.checkpoint.layout import DamagedError
from maxlm.checkpoint.remote.place import StoreError, Throttle, in_parallel, open_place, tried
from maxlm.checkpoint.remote.transfer import Sum, download, upload
from maxlm.config.schema import StoreConfig
from maxlm.files import read_regular

RUN = "run.json"
_WHOLE = re.compile(r"(\d+)\.whole\.json")
_LATER = re.compile(r"(\d+)\.later\.json")
_FOLDER = re.compile(r"(\d+)")


class Store:
    """The copies of one run's checkpoints.

    Every method may raise StoreError: the store did not answer, or not as it should.
    """

    def __init__(self, config: StoreConfig) -> None:
        self.url, self._threads = config.url, config.threads
        self._system, self._root = open_place(config.url)
        rate = config.megabytes_per_second
        self._throttle = Throttle(None if rate is None else rate * 1e6)

    @property
    def moved_bytes(self) -> int:
        """Bytes of files moved so far, both ways."""
        return self._throttle.moved_bytes

    def steps(self) -> list[int]:
        """Return the steps of the whole copies, newest first."""
        return self._named(_WHOLE)

    def sums(self, step: int) -> dict[str, Sum]:
        """Return what the files of a copy must be, by their paths in it.

        Raises:
          DamagedError: its marker cannot be read, or names a place outside of it.
        """
        path = self._marker(step)
        try:
            text = self._read(path)
        except FileNotFoundError as error:
            raise DamagedError(f"{path} is not there") from error
        try:
            content = dict(json.loads(text))
            checksum = content.pop("checksum")
            sums = {
                str(n): Sum(int(size), str(digest))
                for n, (size, digest) in content["files"].items()
            }
            right = content["step"] == step and all(map(_is_inside, sums))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"{path}: {type(error).__name__}: {error}") from error
        if not right or checksum != layout.seal(content)["checksum"]:
            raise DamagedError(f"{path} is not what was written for this step")
        return sums

    def has(self, step: int, folder: Path) -> bool:
        """Tell whether the checkpoint in `folder` is there already: its record is, which says what
        is in all arrays.
        """
        name = f"{layout.RECORD}/{layout.RECORD_FILE}"
        try:
            known = self.sums(step).get(name)
        except DamagedError:
            return False
        return (
            known is not None
            and known.sha256 == hashlib.sha256(read_regular(folder / name)).hexdigest()
        )

    def copy(self, step: int, folder: Path) -> int:
        """Copy the whole checkpoint in `folder`; return its bytes.

        What is there of that step goes first, and its marker before everything else.
        """
        names = [
            path.relative_to(folder).as_posix()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        self.delete(step)
        target, sums, lock = self._folder(step), dict[str, Sum](), threading.Lock()

        def one(name: str) -> None:
            found = upload(self._system, folder / name, f"{target}/{name}", self._throttle)
            with lock:
                sums[name] = found

        in_parallel(one, names, self._threads)
        self._check_sizes(target, sums)
        content = layout.seal({"step": step, "files": {name: sums[name] for name in names}})
        self._write(self._marker(step), json.dumps(content).encode())
        return sum(one.size for one in sums.values())

    def fetch(self, step: int, into: Path) -> int:
        """Copy a checkpoint back into a new folder; return its bytes.

        Raises:
          DamagedError: a file is missing, or is not what was copied.
        """
        sums, source = self.sums(step), self._folder(step)
        for folder in sorted({(into / name).parent for name in sums} | {into}):
            folder.mkdir(parents=True, exist_ok=True)

        def one(name: str) -> None:
            try:
                found = download(self._system, f"{source}/{name}", into / name, self._throttle)
            except FileNotFoundError as error:
                raise DamagedError(f"{source}/{name} is not there") from error
            if found != sums[name]:
                raise DamagedError(
                    f"{source}/{name} is not what was copied: {found.size} bytes of {sums[name].size}, "
                    f"SHA-256 {found.sha256[:12]} instead of {sums[name].sha256[:12]}"
                )

        in_parallel(one, sums, self._threads)
        return sum(one.size for one in sums.values())

    def delete(self, step: int) -> None:
        """Delete a copy, its markers first: a kill never leaves half of one that looks whole."""
        for path in (self._marker(step), self._later(step), self._folder(step)):
            self._remove(path)

    def pass_over(self, step: int) -> None:
        """Let a copy no longer be fetched, as the run has gone back behind it; its files stay."""
        self._write(self._later(step), self._read(self._marker(step)))
        self._remove(self._marker(step))

    def partial_steps(self) -> list[int]:
        """Return the steps that have files and no marker: copies that were killed or failed."""
        marked = {*self._named(_WHOLE), *self._named(_LATER)}
        return [step for step in self._named(_FOLDER) if step not in marked]

    def run(self) -> str | None:
        """Return which run the store is of; None if it is of none yet.

        Raises:
          DamagedError: what says so cannot be read.
        """
        path = f"{self._root}/{RUN}"
        try:
            return str(json.loads(self._read(path))["run"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{path}: {type(error).__name__}: {error}") from error

    def claim(self, run: str) -> None:
        """Write which run the store is of."""
        self._write(f"{self._root}/{RUN}", json.dumps({"run": run}).encode())

    def put(self, name: str, source: Path) -> None:
        """Copy one of the run's small files."""
        upload(self._system, source, f"{self._root}/run/{name}", self._throttle)

    def small_files(self) -> Mapping[str, int]:
        """Return the sizes of the run's small files, by their paths in RUN_DIR."""
        sizes = self._sizes(f"{self._root}/run")
        return {name: size for name, size in sizes.items() if _is_inside(name)}

    def get(self, name: str, target: Path) -> None:
        """Copy one of the run's small files back."""
        download(self._system, f"{self._root}/run/{name}", target, self._throttle)

    def _named(self, pattern: re.Pattern[str]) -> list[int]:
        folder = f"{self._root}/checkpoints"

        def ls() -> list[str]:
            self._system.invalidate_cache()
            return [str(path) for path in self._system.ls(folder, detail=False)]

        try:
            paths = tried(f"{folder} was not listed", ls)
        except FileNotFoundError:
            return []
        names = (PurePosixPath(path.rstrip("/")).name for path in paths)
        return sorted((int(m[1]) for m in map(pattern.fullmatch, names) if m), reverse=True)

    def _check_sizes(self, folder: str, sums: Mapping[str, Sum]) -> None:
        """Compare what the store lists with what was sent: it may have lost or cut something."""
        sizes = self._sizes(folder)
        wanted = {name: one.size for name, one in sums.items()}
        if sizes != wanted:
            wrong = sorted(
                name for name in {*sizes, *wanted} if sizes.get(name) != wanted.get(name)
            )
            raise StoreError(f"{folder} does not have what was written: {', '.join(wrong[:3])}")

    def _sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes of all files below a folder, by their paths in it."""

        def find() -> dict[str, int]:
            self._system.invalidate_cache()
            found = self._system.find(folder, detail=True)
            return {
                path.removeprefix(f"{folder}/"): int(one["size"]) for path, one in found.items()
            }

        return tried(f"{folder} was not listed", find)

    def _read(self, path: str) -> bytes:
        return tried(f"{path} was not read", lambda: bytes(self._system.cat_file(path)))

    def _write(self, path: str, data: bytes) -> None:
        tried(f"{path} was not written", lambda: self._system.pipe_file(path, data))

    def _remove(self, path: str) -> None:
        """Delete a file, or a folder with all that is in it, if it is there."""

        def once() -> None:
            if self._system.exists(path):
                self._system.rm(path, recursive=True)

        tried(f"{path} was not deleted", once)

    def _folder(self, step: int) -> str:
        return f"{self._root}/checkpoints/{step:08d}"

    def _marker(self, step: int) -> str:
        return f"{self._folder(step)}.whole.json"

    def _later(self, step: int) -> str:
        return f"{self._folder(step)}.later.json"


def _is_inside(name: str) -> bool:
    """Tell whether a name from a store is a plain path below the folder it is joined to."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
