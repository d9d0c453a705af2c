"""Which files of a source's `raw` section are read, in which order, and what is skipped and why."""

from __future__ import annotations

import glob
import os
import sysconfig
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import fsspec

from data_pipeline.readers.formats import format_of
from data_pipeline.readers.streams import is_url
from maxlm.config.errors import UserError
from maxlm.config.pipeline.raw import RawTextConfig
from maxlm.files import kind_of, place_of

ARCHIVES = (".zip", ".7z", ".lz4", ".tgz", ".tar")
INSTALLED = ("site-packages", "dist-packages", "__pycache__")  # not part of the standard library
# Some in deliberately bad encodings; many systems leave them out.
TESTS = ("test", "tests", "idle_test")


@dataclass
class Skipped:
    """What was left out: how many for each reason, and the name of the first."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one more."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, printable(name))

    def lines(self) -> list[str]:
        """Return a line per reason: `skipped 3: undecodable file, such as raw/a.txt`."""
        return [
            f"skipped {count:,}: {reason}, such as {self.examples[reason]}"
            for reason, count in sorted(self.counts.items())
        ]


def printable(name: str) -> str:
    """Return a file's name for a terminal: what cannot be printed is escaped."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in name
    )


class InputFile(NamedTuple):
    """A file to read.

    Attributes:
      path: where it is; a URL, or a path of this machine.
      name: what its documents' ids are made of.
      bytes: its size.
      stamp: differs when the file was changed; in each listing, where the store does not say.
    """

    path: str
    name: str
    bytes: int
    stamp: str


def list_inputs(raw: RawTextConfig, skipped: Skipped) -> list[InputFile]:
    """Return the files that a source's `raw` section names, in their order.

    Raises:
      UserError: a path is not there, or is neither file nor folder.
    """
    if raw.kind == "python_stdlib":
        return [_stamped(path, name) for path, name in _standard_library(raw, skipped)]
    if not raw.paths:
        raise UserError("raw.paths is empty; name the files or folders to read")
    local = [path for path in raw.paths if not is_url(path)]
    files = [_stamped(path, path.as_posix()) for path in _listed_files(local, raw, skipped)]
    seen = set[str]()
    for path in raw.paths:
        for file in _remote_files(path, raw, skipped) if is_url(path) else ():
            if file.name in seen:
                skipped.add("file that was read already", file.name)
            else:
                seen.add(file.name)
                files.append(file)
    return files


def _stamped(path: Path, name: str) -> InputFile:
    try:
        status = path.stat()
    except OSError:  # reading it will say so
        return InputFile(str(path), name, 0, "")
    return InputFile(str(path), name, status.st_size, str(status.st_mtime_ns))


def _standard_library(raw: RawTextConfig, skipped: Skipped) -> Iterator[tuple[Path, str]]:
    """Yield (file, name) of the running Python's library, without what was installed, and without
    its tests.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in _Walk((root,), raw, skipped, leave_out=INSTALLED).files(root):
        parts = path.relative_to(root).parts
        if path.suffix != ".py":
            skipped.add("other suffix", "/".join(parts))
        elif any(part in TESTS for part in parts[:-1]):
            skipped.add("test file", "/".join(parts))
        else:
            yield path, "/".join(parts)


def _listed_files(paths: Sequence[str], raw: RawTextConfig, skipped: Skipped) -> Iterator[Path]:
    """Yield each file once: named ones whatever their suffix, those of folders and patterns by
    theirs.
    """
    roots = [(path, named) for given in paths for path, named in _expanded(given)]
    walk = _Walk([path for path, _ in roots], raw, skipped)
    seen = set()
    for root, named in roots:
        for path in walk.files(root):
            form = format_of(path.name, raw.suffixes)
            if path.name.lower().endswith(ARCHIVES):
                skipped.add("archive", path.as_posix())
            elif form is None and not (named and root == path):
                skipped.add("other suffix", path.as_posix())
            elif (place := place_of(str(path))) in seen:
                skipped.add("file that was read already", path.as_posix())
            else:
                seen.add(place)
                yield path


def _expanded(given: str) -> list[tuple[Path, bool]]:
    """Return the paths that a path or pattern stands for, and whether each was named.

    Raises:
      UserError: there is none, or it is neither file nor folder.
    """
    root = Path(given)
    if not root.exists():
        found = _matches(given) if glob.has_magic(given) else []
        if not found:
            raise UserError(f"raw.paths: {root}: there is no such file or folder")
        return [(Path(path), False) for path in found]
    if not (root.is_dir() or root.is_file()):
        kind = kind_of(root.stat().st_mode)
        raise UserError(
            f"raw.paths: {root} is {kind}; name a file or a folder (copy its text into a file)"
        )
    return [(root, True)]


def _matches(pattern: str) -> list[str]:
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
    return sorted(found)


def _remote_files(url: str, raw: RawTextConfig, skipped: Skipped) -> Iterator[InputFile]:
    """Yield the files of an object store that a URL, a folder's URL or a pattern stands for.

    Raises:
      UserError: there is none, or the store cannot be asked.
    """
    try:
        system, path = fsspec.url_to_fs(url)
        named = not glob.has_magic(path)
        found = {path: system.info(path)} if named else system.glob(path, detail=True)
        if named and found[path]["type"] == "directory":
            found, named = system.find(path, detail=True), False
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"raw.paths: {url}: {error}; give another path") from None
    if not found:
        raise UserError(f"raw.paths: {url}: there is no such file")
    for place, about in sorted(found.items()):
        name = system.unstrip_protocol(place)
        if about["type"] != "file":
            continue
        if format_of(place, raw.suffixes) is None and not named:
            skipped.add("other suffix", name)
        else:
            stamps = [str(about[key]) for key in ("ETag", "mtime", "created") if about.get(key)]
            # What may be another file without a sign of it is none that was read before.
            stamp = stamps[0] if stamps else f"unknown {uuid.uuid4()}"
            yield InputFile(name, name, int(about["size"] or 0), stamp)


class _Walk:
    """Go through files and folders in the order of their paths, each folder once, and leave them
    only if asked.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        raw: RawTextConfig,
        skipped: Skipped,
        *,
        leave_out: Sequence[str] = (),
    ) -> None:
        self._roots = [Path(place_of(str(root))) for root in roots]
        self._follow, self._skipped, self._leave_out = raw.follow_links, skipped, leave_out
        self._visited: set[str] = set()

    def files(self, root: Path) -> Iterator[Path]:
        """Yield the regular files below a folder, or the file itself."""
        if not root.is_dir():
            yield root
            return
        stack = [self._entries(root)]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
            elif self._is_wanted(entry):
                if entry.is_dir():
                    stack.append(self._entries(Path(entry.path)))
                else:
                    yield Path(entry.path)

    def _entries(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        place = place_of(str(folder))
        if place in self._visited:
            self._skipped.add("folder that was read already", folder.as_posix())
            return
        self._visited.add(place)
        try:
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            self._skipped.add("unreadable folder", folder.as_posix())
            return
        yield from inside

    def _is_wanted(self, entry: os.DirEntry[str]) -> bool:
        """Tell whether an entry is a folder or file to read; count what is not."""
        if entry.name in self._leave_out:
            return False
        reason = self._reason_against_link(entry) if entry.is_symlink() else None
        if reason is None and not (entry.is_dir() or entry.is_file()):
            reason = "neither file nor folder"
        if reason is not None:
            self._skipped.add(reason, Path(entry.path).as_posix())
        return reason is None

    def _reason_against_link(self, entry: os.DirEntry[str]) -> str | None:
        if not Path(entry.path).exists():
            return "link to nothing"
        place = Path(place_of(entry.path))
        if any(place.is_relative_to(root) for root in self._roots):
            return "link to a folder that is read anyway" if entry.is_dir() else None
        return None if self._follow else "link that leads out of raw.paths"
