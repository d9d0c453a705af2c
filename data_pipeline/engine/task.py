"""A task: an operation on files that writes files, named by what they depend on; and its record,
which says that it is finished.

A task's identity is a hash of its operation, its settings, the contents of its inputs, the code that
it runs and the versions of the libraries that this code uses. Its record is written after its
outputs and carries the identity: where the two agree and the outputs are there, the task is done.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.engine.code import code_of
from data_pipeline.libraries import versions
from data_pipeline.storage.whole import file_sha256
from maxlm.files import write_whole


class File(NamedTuple):
    """A file that a task wrote: where it is, its SHA-256, its bytes, and what it holds."""

    path: Path
    sha256: str
    bytes: int
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """What a finished task wrote, what it counted, and what it took.

    Attributes:
      outputs: its files, which lie beside the record.
      figures: what it counted, the same in every run.
      cost: seconds and bytes of memory, which are not.
    """

    outputs: tuple[File, ...]
    figures: Mapping[str, Any]
    cost: Mapping[str, float]


@dataclass(frozen=True)
class Task:
    """An operation and all it needs to know; it can be sent to another machine as JSON.

    Attributes:
      operation: a key of `data_pipeline.operations.OPERATIONS`.
      modules: of the code whose changes make it another task.
      folder: where its outputs and its record go.
      name: of its record, and the start of its outputs' names; it sorts as the tasks do.
      settings: what it depends on, as JSON.
      inputs: files that it reads, with their hashes.
    """

    operation: str
    modules: tuple[str, ...]
    folder: Path
    name: str
    settings: Mapping[str, Any]
    inputs: tuple[tuple[Path, str], ...] = ()

    @functools.cached_property
    def identity(self) -> str:
        """Hash of what the outputs depend on, in hexadecimal."""
        known = {
            "operation": self.operation,
            "settings": self.settings,
            "inputs": [sha256 for _, sha256 in self.inputs],
            **runs(self.modules),
        }
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    @property
    def label(self) -> str:
        """A name for people: its folder's and its own."""
        return f"{self.folder.name}/{self.name}"

    @property
    def paths(self) -> list[Path]:
        """Its inputs, without their hashes."""
        return [path for path, _ in self.inputs]

    def to_json(self) -> str:
        """Return the task as text."""
        inputs = [[str(path), sha256] for path, sha256 in self.inputs]
        return json.dumps(
            {
                "operation": self.operation,
                "modules": self.modules,
                "folder": str(self.folder),
                "name": self.name,
                "settings": self.settings,
                "inputs": inputs,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Return the task of a text."""
        values = json.loads(text)
        inputs = tuple((Path(path), sha256) for path, sha256 in values["inputs"])
        return cls(
            **{
                **values,
                "modules": tuple(values["modules"]),
                "folder": Path(values["folder"]),
                "inputs": inputs,
            }
        )

    def record(self, *, with_outputs: bool = True) -> Record | None:
        """Return the record if the task is finished, else None.

        Args:
          with_outputs: its outputs must be there too, in their sizes.
        """
        try:
            values = json.loads(self._record_path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(values, dict) or values.get("identity") != self.identity:
            return None
        outputs = tuple(
            File(self.folder / one["file"], one["sha256"], one["bytes"], one["about"])
            for one in values["outputs"]
        )
        if with_outputs and not all(_has_size(file) for file in outputs):
            return None
        return Record(outputs, values["figures"], values["cost"])

    def finish(self, outputs: Mapping[Path, Mapping[str, Any]], **more: Mapping[str, Any]) -> None:
        """Write the record.

        Args:
          outputs: the files that were written, in order, and what is to be known of each.
          more: `figures` and `cost`.
        """
        described = [
            {
                "file": path.name,
                "sha256": file_sha256(path),
                "bytes": path.stat().st_size,
                "about": about,
            }
            for path, about in outputs.items()
        ]
        values = {"identity": self.identity, "outputs": described, **more}
        write_whole(self._record_path, (json.dumps(values, indent=1) + "\n").encode())

    @property
    def _record_path(self) -> Path:
        return self.folder / f"{self.name}.json"


def runs(modules: Sequence[str]) -> dict[str, Any]:
    """Return what modules run, as JSON: hashes of their code, and the versions of what it uses."""
    codes = [code_of(module) for module in modules]
    used = frozenset[str]().union(*(code.libraries for code in codes))
    found = {name: number for name, number in versions().items() if name in {"python", *used}}
    return {"code": [code.sha256 for code in codes], "versions": found}


def _has_size(file: File) -> bool:
    try:
        return file.path.stat().st_size == file.bytes
    except OSError:
        return False
