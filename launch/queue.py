"""What was given to Slurm as arrays and is still in the queue, so that nothing is given twice."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

Command = tuple[str, ...]


def record(folder: Path, job: str, commands: Sequence[Sequence[str]]) -> None:
    """Keep in a folder of logs what an array's jobs do, in their order."""
    line = json.dumps({"job": job, "commands": [list(command) for command in commands]})
    with (folder / "arrays.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def queued(folder: Path) -> dict[Command, str]:
    """Return the commands of arrays that wait or run, each with its job, such as 42_3.

    Empty where Slurm's `squeue` is not there or does not answer.
    """
    there = _in_queue() if (folder / "arrays.jsonl").is_file() else set()
    return {command: job for command, job in _recorded(folder) if job in there}


def _recorded(folder: Path) -> Iterator[tuple[Command, str]]:
    path = folder / "arrays.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            array = json.loads(line)
            named = [
                (tuple(command), f"{array['job']}_{n}")
                for n, command in enumerate(array["commands"])
            ]
        except (ValueError, KeyError, TypeError):  # a line that was not written to its end
            continue
        yield from named


def _in_queue() -> set[str]:
    if shutil.which("squeue") is None:
        return set()
    command = ["squeue", "--noheader", "--array", "--format", "%i"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return set(done.stdout.split())
