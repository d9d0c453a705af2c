"""What a folder of checkpoints looks like on disk.

00000100/                 a whole checkpoint: the name appears by one rename, after everything in it is written
    state/                arrays, written by orbax (OCDBT)
    record/record.json    what is not an array, and the manifest of the arrays; carries its own checksum
00000200.damaged          set aside because it could not be restored; never deleted by maxlm
00000200.later            set aside because the run went back to an earlier one; never deleted by maxlm
00000300.orbax-...-tmp*   a save in progress, or one that was killed: swept when the run starts again
00000050.deleting         a checkpoint being deleted: renamed first, so that a kill never leaves half of one
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maxlm.checkpoint.fingerprint import fingerprint_values

STATE = "state"
RECORD = "record"
RECORD_FILE = "record.json"

CAUSE_LENGTH = 300  # orbax appends its whole configuration to the cause

_TOLD = frozenset(("step", "token_hash"))  # of a state, what its record says too

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


def set_aside(path: Path, why: Literal["damaged", "later"]) -> Path:
    """Rename a checkpoint that is not to be resumed from, keeping its content; return the new path."""
    aside = path.with_name(f"{path.name}.{why}")
    number = 2
    while aside.exists():
        aside = path.with_name(f"{path.name}.{why}-{number}")
        number += 1
    return path.rename(aside)


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Return `content` as it reads back from JSON, with its checksum."""
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return {"checksum": _checksum(plain), **plain}


def read_sealed(path: Path) -> dict[str, Any]:
    """Read the record file of the checkpoint in `path`, without its checksum.

    Raises:
        DamagedError: it is missing, is no JSON, or does not fit its checksum; or it is of another
          step than the folder's name or the state says.
    """
    file = path / RECORD / RECORD_FILE
    try:
        content = dict(json.loads(file.read_text(encoding="utf-8")))
        checksum = content.pop("checksum")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    if checksum != _checksum(content):
        raise DamagedError(f"{file} does not fit its checksum")
    differing = disagreement(int(path.name), content)
    if differing:
        raise DamagedError(differing)
    return content


def disagreement(step: int, content: dict[str, Any]) -> str | None:
    """Say how the folder of `step`, the record in it and the state that it describes are not of one
    step and of the same tokens; None if they are.

    Of the state its manifest is asked, which the arrays must fit: of arrays called `step` and
    `token_hash`, if it has them.
    """
    try:
        record, manifest = content["record"], content["leaves"]
        saved, tokens = record["step"], record.get("token_hash")
        numbers = {name: manifest[name]["fingerprint"] for name in _TOLD & manifest.keys()}
        told = "token_hash" in numbers and [int(tokens[at : at + 8], 16) for at in (0, 8)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return f"its record is none of a checkpoint: {type(error).__name__}: {error}"
    if saved != step:
        return f"its folder is that of step {step}, its record that of step {saved}"
    if numbers.get("step", _fingerprint([saved])) != _fingerprint([saved]):
        return f"its record is that of step {saved}, its state that of another"
    if told and numbers["token_hash"] != _fingerprint(told):
        return f"its record is of the tokens {tokens}, its state of others"
    return None


def _fingerprint(numbers: list[int]) -> str:
    """Return the fingerprint of a small array of whole numbers as manifests have it."""
    values = np.array([number % 2**32 for number in numbers], np.uint32)
    return f"{fingerprint_values(values, (slice(None),), values.shape):08x}"


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
