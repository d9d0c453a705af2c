"""Settings of a list: entries in the YAML, and files with one on each line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from maxlm.config.errors import Problem
from maxlm.config.section import Section, as_tuple


class WordListConfig(Section):
    """Entries, and text files of them, one on each line; `#` begins a comment."""

    entries: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    files: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield files that are not there."""
        yield from missing_files(f"{path}.files", self.files)

    def __bool__(self) -> bool:
        return bool(self.entries or self.files)


def missing_files(path: str, files: tuple[str, ...]) -> Iterator[Problem]:
    """Yield a problem for each file that is not there; `path` is the setting that names them."""
    for index, name in enumerate(files):
        yield from missing_file(f"{path}.{index}", name)


class MissingFileProblem(Problem):
    """A file that `maxlm prepare` needs and training does not."""


def missing_file(path: str, name: str, *, made_by: str | None = None) -> Iterator[Problem]:
    """Yield a problem if a file is not there.

    Args:
      path: the setting that names it.
      name: the file.
      made_by: the command that makes such a file, but for its `--output`.
    """
    if not Path(name).is_file():
        make = f", or make it: {made_by} --output {name}" if made_by else ""
        yield MissingFileProblem(
            path, f"{path}: {name}: there is no such file; correct or remove it{make}"
        )


def _entries(value: Any) -> Any:
    """Take a plain list as the entries."""
    return {"entries": value} if isinstance(value, list) else value


WordList = Annotated[WordListConfig, BeforeValidator(_entries)]
EMPTY = WordListConfig()
