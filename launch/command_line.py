"""What the command lines of the launchers share: the command of each process stands behind `--`."""

from __future__ import annotations

from collections.abc import Sequence


def split_command(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the launcher's own arguments, and the command behind the first `--`."""
    if "--" not in arguments:
        return list(arguments), []
    place = list(arguments).index("--")
    return list(arguments[:place]), list(arguments[place + 1 :])
