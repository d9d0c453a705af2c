"""The user's mistakes: what is wrong, where, and the cure."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass


class UserError(ValueError):
    """A mistake that the user can cure; its text names the file or YAML path, the values and the
    cure.
    """


class RunFailedError(RuntimeError):
    """A run that cannot go on although nobody made a mistake; its text says what happened and what
    to try.
    """


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: `path` is the setting, `where` its file and line if
    they are known.
    """

    path: str
    text: str
    where: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text


def make_possible(error: OSError) -> str:
    """Say what to do about a file or folder that could not be written."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        return "move away what is in its place"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room"
    return "make it writable"


class ConfigError(UserError):
    """Everything wrong with one configuration."""

    def __init__(self, problems: Sequence[Problem], source: str = "the configuration"):
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(
            "\n".join([f"{count} in {source}:", *(f"  {problem}" for problem in self.problems)])
        )
