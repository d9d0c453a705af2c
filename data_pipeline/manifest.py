"""`manifest.json`: what a prepared folder was made from, and the mark that it is whole (it is
written last).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maxlm.config.errors import UserError
from maxlm.files import read_regular, write_whole

MANIFEST_NAME = "manifest.json"
FORMAT = "maxlm-prepared-3"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return a folder's manifest; None where there is none.

    Raises:
      UserError: it is damaged, or of another format.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(read_regular(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read: {error}; run: maxlm prepare RUN.yaml --force"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a manifest of format {FORMAT}; run: maxlm prepare RUN.yaml --force"
        )
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a folder's manifest; it is there in full or not at all."""
    text = json.dumps({"format": FORMAT} | manifest, indent=1) + "\n"
    write_whole(folder / MANIFEST_NAME, text.encode())


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield `key: old -> new` for every setting that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path}: {old} -> {new}"
