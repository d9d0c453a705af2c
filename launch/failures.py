"""What broke first in the logs of a job's processes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from maxlm.config.cluster.exit_codes import Exit

MOST_BYTES = 64 * 2**20
"""Of a log that are read; what fails first stands before a flood of what fails after it."""

# What a process says when it ends badly, from the plainest on. A traceback's own line comes after
# its indented ones.
FAILURE = re.compile(
    r"^(maxlm: (?!interrupted)"
    r"|Fatal Python error"
    r"|[FE]\d{4} [\d:.]+ +\d+ "  # absl: F and E lines of XLA
    r"|.*\b(out of memory|RESOURCE_EXHAUSTED|Segmentation fault|Killed|Bus error|No space left)\b"
    r"|.*\bNCCL WARN\b"
    r"|slurmstepd: error|srun: error"
    r"|bash: .*(No such file|command not found|Permission denied))"
)
TRACEBACK = "Traceback (most recent call last)"


class Failure(NamedTuple):
    """The first failing line.

    Attributes:
      log: the file.
      number: of the line, from 1.
      text: of the line.
      code: exit code of the process, None for one that was killed before it could say.
    """

    log: Path
    number: int
    text: str
    code: int | None

    def __str__(self) -> str:
        how = "was killed" if self.code is None else f"exited with {self.code}"
        return f"{self.log.name} ({how}), line {self.number}: {self.text}"


def first_failure(folder: Path) -> Failure | None:
    """Return the first failing line of the process that failed first, None if none has failed.

    Args:
      folder: with NODE.TASK.log and TASK.exit of each process.
    """
    codes = {
        path.stem: (path.stat().st_mtime, int(path.read_text().strip() or Exit.FAILED))
        for path in folder.glob("*.exit")
    }
    logs = {path.stem.rpartition(".")[2]: path for path in folder.glob("*.*.log")}
    bad = [task for task, (_, code) in codes.items() if code not in (Exit.DONE, Exit.STOPPED)]
    # The exit files are of one file server's clock.
    ordered = sorted(bad, key=lambda task: codes[task][0])
    ordered += sorted(task for task in logs if task not in codes)
    found = [
        Failure(logs[task], *failing_line(logs[task]), codes[task][1] if task in codes else None)
        for task in ordered
        if task in logs
    ]
    # One that was killed without a word knows less than one that says why.
    return next((failure for failure in found if failure.text), found[0] if found else None)


def failing_line(log: Path) -> tuple[int, str]:
    """Return the number and the text of the first line that tells of a failure, the last line if
    none does.
    """
    with log.open("rb") as file:
        lines = file.read(MOST_BYTES).decode(errors="replace").splitlines()
    in_traceback, last = False, (0, "")
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text:
            last = (number, text)
        if text.startswith(TRACEBACK):
            in_traceback = True
        elif (in_traceback and text and not line.startswith((" ", "\t"))) or FAILURE.match(line):
            return number, text
    return last
