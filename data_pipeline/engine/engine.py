"""What every engine does: run tasks, in any order, until each has its record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from data_pipeline.engine.task import Task

Done = Callable[[Task], None]


class Engine(Protocol):
    """Runs tasks; their order and number at a time do not matter for what they write."""

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """Run tasks that do not depend on each other, and tell each that is done.

        Raises:
          UserError: a task met a mistake of the user's.
          RunFailedError: a task failed twice.
        """
        ...

    def close(self) -> None:
        """End what runs."""
        ...
