"""Which files of a source's `raw` section are read, in which order, and what is skipped and why."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from maxlm.config.errors import UserError
from maxlm.config.pipeline.raw import RawTextConfig
from maxlm.files import kind_of, place_of

SUFFIXES = (".txt", ".md", ".py", ".jsonl")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".lz4", ".tgz")
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


def standard_library(raw: RawTextConfig, skipped: Skipped) -> Iterator[tuple[Path, str]]:
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


def listed_files(raw: RawTextConfig, skipped: Skipped) -> Iterator[tuple[Path, str]]:
    """Yield (file, name) of `raw.paths`, each file once: named ones whatever their suffix, folders'
    by theirs.

    Raises:
      UserError: `raw.paths` is empty, or one of them is not there or neither file nor folder.
    """
    if not raw.paths:
        raise UserError("raw.paths is empty; name the files or folders to read")
    roots = [Path(given) for given in raw.paths]
    for root in roots:
        if not root.exists():
            raise UserError(f"raw.paths: {root}: there is no such file or folder")
        if not (root.is_dir() or root.is_file()):
            kind = kind_of(root.stat().st_mode)
            raise UserError(
                f"raw.paths: {root} is {kind}; name a file or a folder (copy its text into a file)"
            )
    walk = _Walk(roots, raw, skipped)
    seen = set()
    for path, named in ((path, root == path) for root in roots for path in walk.files(root)):
        suffix = path.suffix.lower()
        if suffix in COMPRESSED:
            skipped.add("compressed file", path.as_posix())
        elif not named and suffix not in SUFFIXES:
            skipped.add("other suffix", path.as_posix())
        elif (place := place_of(str(path))) in seen:
            skipped.add("file that was read already", path.as_posix())
        else:
            seen.add(place)
            yield path, path.as_posix()


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
