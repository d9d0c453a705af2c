"""Tasks in processes of this machine."""

from __future__ import annotations

import selectors
from collections import deque
from collections.abc import Sequence

from data_pipeline.engine.engine import Done
from data_pipeline.engine.isolation.limits import Limits
from data_pipeline.engine.isolation.process import TaskProcess
from data_pipeline.engine.task import Task


class LocalEngine:
    """A pool of processes, each of which works on one task at a time."""

    def __init__(self, workers: int, limits: Limits):
        self._limits = limits
        self._idle = [TaskProcess() for _ in range(workers)]
        self._busy: dict[TaskProcess, Task] = {}

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """Run tasks; those that fail run again when all others are done, one after the other."""
        failed: list[tuple[Task, Limits]] = []
        waiting = deque(tasks)
        try:
            while waiting or self._busy:
                while waiting and self._idle:
                    process = self._idle.pop()
                    self._busy[process] = waiting.popleft()
                    process.start(self._busy[process], self._limits)
                for process in self._ready():
                    task, outcome = self._busy.pop(process), process.outcome()
                    self._idle.append(process)
                    if outcome.end == "done":
                        done(task)
                    else:
                        failed.append((task, self._limits.after(outcome, task)))
            for task, limits in failed:
                self._run_alone(task, limits)
                done(task)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes; what they were at is not finished."""
        self._idle += self._busy
        self._busy = {}
        for process in self._idle:
            process.close()

    def _ready(self) -> list[TaskProcess]:
        with selectors.DefaultSelector() as selector:
            for process in self._busy:
                selector.register(process, selectors.EVENT_READ)
            return [key.fileobj for key, _ in selector.select()]  # type: ignore[misc]

    def _run_alone(self, task: Task, limits: Limits) -> None:
        process = self._idle[0]
        while True:
            process.start(task, limits)
            outcome = process.outcome()
            if outcome.end == "done":
                return
            limits = limits.after(outcome, task)
