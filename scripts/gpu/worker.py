"""A process that does jobs for `scripts/gpu_report`, each a line on stdin, and answers with a line of JSON.

It ends with the first job that fails: an illegal access to the GPU's memory spoils all that comes after.
Whatever is timed runs under a lock, so that nobody else uses the GPU meanwhile.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.gpu import attention, checks, facts, grouped


def main() -> None:
    """Serve until stdin ends."""
    lock_path, scale = Path(sys.argv[1]), sys.argv[2]
    # Libraries print to stdout: answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    @contextmanager
    def alone() -> Iterator[None]:
        with lock_path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    tiny = scale == "tiny"
    for line in sys.stdin:
        job = json.loads(line)
        if job["part"] == "facts":
            with alone():
                found = facts.measure(tiny=tiny)
        elif job["part"] == "checks":
            found = checks.check(**job["given"], alone=alone, tiny=tiny)
        elif job["part"] == "attention":
            found = attention.compare(**job["given"], alone=alone, tiny=tiny)
        elif job["part"] == "grouped":
            found = grouped.compare(**job["given"], alone=alone, tiny=tiny)
        elif job["part"] == "tuning":
            found = attention.try_blocks(**job["given"], alone=alone, tiny=tiny)
        else:
            # It alone needs the configuration and the trainer, and their packages.
            from scripts.gpu import training  # noqa: PLC0415

            with alone():
                found = training.measure(**job["given"], tiny=tiny)
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
