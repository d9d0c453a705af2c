"""What a process tells its launcher when it ends: one table, for maxlm and for everything in
`launch/`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    """The exit code of a command, and so whether it is worth starting again."""

    DONE = 0
    """It did what it was asked for."""
    FAILED = 1
    """Something broke: start it again, after a pause that grows, so often and no more."""
    MISTAKE = 2
    """The user's mistake, in settings, files or usage: it would end the same way again."""
    STOPPED = 75
    """A signal stopped it and everything is saved (EX_TEMPFAIL of sysexits.h): start it again."""


def judge(codes: Iterable[int]) -> Exit:
    """Return what the exit codes of a job's processes mean together.

    Who makes a mistake takes the others down with it, and they fail in its wake: one MISTAKE is
    enough. Everything that is none of the table, such as a death by a signal, is FAILED.
    """
    seen = set(codes)
    if Exit.MISTAKE in seen:
        return Exit.MISTAKE
    if not seen <= {Exit.DONE, Exit.STOPPED}:
        return Exit.FAILED
    return Exit.STOPPED if Exit.STOPPED in seen else Exit.DONE
