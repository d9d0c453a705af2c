"""What a folder of checkpoints looks like on disk.

00000100/                 a whole checkpoint: the name appears by one rename, after everything in it is written
    state/                arrays, written by orbax (OCDBT)
    record/record.json    what is not an array, and the manifest of the arrays; carries its own checksum
00000200.damaged          set aside because it could not be restored; never deleted by maxlm
00000300.orbax-...-tmp*   a save in progress, or one that was killed: swept when the run starts again
00000050.deleting         a checkpoint being deleted: renamed first, so that a kill never leaves half of one
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

STATE = "state"
RECORD = "record"
RECORD_FILE = "record.json"

_WHOLE = re.compile(r"\d+")
_UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp.*")
_DELETING = re.compile(r"\d+\.deleting")


class DamagedError(Exception):
    """A checkpoint that cannot be restored; the text is the cause."""


def step_path(directory: Path, step: int) -> Path:
    """Return the folder of the checkpoint of `step`."""
    return directory / f"{step:08d}"


def saved_steps(directory: Path) -> list[int]:
    """Return the steps that have a folder, newest first; a folder may still be damaged."""
    if not directory.is_dir():
        return []
    return sorted(
        (int(p.name) for p in directory.iterdir() if _WHOLE.fullmatch(p.name)), reverse=True
    )


def sweep(directory: Path, *, deletions: bool) -> list[Path]:
    """Delete what failed or killed saves left, and killed `deletions` if none is going on; return
    the folders.
    """
    if not directory.is_dir():
        return []
    patterns = (_UNFINISHED, _DELETING) if deletions else (_UNFINISHED,)
    leftovers = [
        path for path in directory.iterdir() if any(p.fullmatch(path.name) for p in patterns)
    ]
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    return leftovers


def remove(path: Path) -> None:
    """Delete a checkpoint so that no kill leaves half of one under its name."""
    doomed = path.with_name(f"{path.name}.deleting")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, keeping its content; return the new path."""
    aside = path.with_name(f"{path.name}.damaged")
    number = 2
    while aside.exists():
        aside = path.with_name(f"{path.name}.damaged-{number}")
        number += 1
    return path.rename(aside)


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Return `content` as it reads back from JSON, with its checksum."""
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return {"checksum": _checksum(plain), **plain}


def read_sealed(path: Path) -> dict[str, Any]:
    """Read the record file of the checkpoint in `path`, without its checksum.

    Raises:
        DamagedError: it is missing, is no JSON, or does not fit its checksum.
    """
    file = path / RECORD / RECORD_FILE
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
        checksum = content.pop("checksum")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    if checksum != _checksum(content):
        raise DamagedError(f"{file} does not fit its checksum")
    return content


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
