"""A process that works on one task after the other: `python -m data_pipeline.engine.isolation.child`.

It is told tasks by lines of JSON on its standard input and answers with lines of JSON on file
descriptor `ANSWERS`. It dies with the process that started it.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import sys
import traceback

from data_pipeline.engine.isolation.limits import DeviceMemoryError, Limits, Outcome
from data_pipeline.engine.isolation.watch import Watch, limit_memory
from data_pipeline.engine.task import Task
from data_pipeline.operations import perform
from data_pipeline.storage.disk import disk_errors
from maxlm.config.errors import UserError

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Work until there are no more tasks."""
    parent, answers, place = map(int, sys.argv[1:])
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    shared = mmap.mmap(place, 0)
    with os.fdopen(answers, "w", encoding="utf-8") as channel:
        limited = False
        for line in sys.stdin:
            message = json.loads(line)
            limits = Limits.from_json(message["limits"])
            if not limited:
                limit_memory(limits.memory_bytes)
                limited = True
            outcome = _try(Task.from_json(message["task"]), Watch(limits, shared))
            channel.write(json.dumps(outcome._asdict()) + "\n")
            channel.flush()


def _try(task: Task, watch: Watch) -> Outcome:
    try:
        with disk_errors(task.folder):
            perform(task, watch)
    except DeviceMemoryError as error:
        return Outcome("memory", text=str(error))
    except MemoryError:
        return Outcome("memory")
    except UserError as error:
        return Outcome("mistake", text=str(error))
    except Exception as error:  # noqa: BLE001 (whatever a step raises is its task's end)
        return Outcome("error", text="".join(traceback.format_exception(error)).rstrip())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Outcome("done")


def _die_with(parent: int) -> None:
    """Let the kernel end this process when the parent ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        sys.exit(1)


if __name__ == "__main__":
    main()
