"""The outside of a task's process: start it, give it a task, tell how that ended."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
from contextlib import suppress

from data_pipeline.engine.isolation.limits import Limits, Outcome
from data_pipeline.engine.isolation.watch import PLACE_BYTES
from data_pipeline.engine.task import Task

# One task, one core: the engine starts as many processes as there are cores. Memory is counted, so
# no library may reserve it for later.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_IO_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
}


class TaskProcess:
    """A process that works on one task at a time, and is started again when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._place = mmap.mmap(-1, PLACE_BYTES)
        self._answers = -1

    def start(self, task: Task, limits: Limits) -> None:
        """Give the process a task."""
        if self._process is None:
            self._launch()
        assert self._process is not None
        assert self._process.stdin is not None
        message = json.dumps({"task": task.to_json(), "limits": limits.to_json()})
        with suppress(BrokenPipeError):  # it has died, which `outcome` will tell
            self._process.stdin.write(message + "\n")
            self._process.stdin.flush()

    def fileno(self) -> int:
        """Return the descriptor that can be read when `outcome` need not wait."""
        return self._answers

    def outcome(self) -> Outcome:
        """Wait for the task's end, and say how it ended."""
        line = b""
        while not line.endswith(b"\n"):
            part = os.read(self._answers, 65536)
            if not part:
                return self._died()
            line += part
        outcome = Outcome(**json.loads(line))
        if outcome.end == "memory":  # what is left of it may be in pieces
            outcome = outcome._replace(place=self._read_place())
            self.close()
        return outcome

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def _launch(self) -> None:
        self._answers, answers = os.pipe()
        place = os.memfd_create("place")
        os.ftruncate(place, PLACE_BYTES)
        self._place = mmap.mmap(place, PLACE_BYTES)
        arguments = map(str, (os.getpid(), answers, place))
        path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "data_pipeline.engine.isolation.child", *arguments],
            stdin=subprocess.PIPE,
            pass_fds=(answers, place),
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
            text=True,
        )
        os.close(answers)
        os.close(place)

    def _died(self) -> Outcome:
        assert self._process is not None
        place, code = self._read_place(), self._process.wait()
        self._reap()
        if code == -signal.SIGALRM:
            return Outcome("time", place)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Outcome("lost", place, f"its process ended by {name}")

    def _reap(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.wait()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        os.close(self._answers)
        self._process, self._answers = None, -1

    def _read_place(self) -> int:
        return int.from_bytes(self._place[:PLACE_BYTES], "little", signed=True)
