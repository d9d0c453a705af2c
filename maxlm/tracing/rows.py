"""Which rows a step read: by what the run wrote down, never by a guess.

A step reads the rows that follow those of the step before, as many as the batch size says at the time.
The batch size may change where a run goes on from a checkpoint, and that checkpoint may be gone by now.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from pathlib import Path

from maxlm.config.errors import UserError
from maxlm.metrics.writers.lines import FILE, sort_out

ROWS, RESUMED = "data/rows", "run/resumed_from"


def rows_of(run_dir: Path, step: int, *, saved: Mapping[int, int], batch_size: int) -> range:
    """Return the rows that a run read in its step `step`, from 0, or will read.

    Args:
      run_dir: of the run; its metrics.jsonl says what had been read after each logged step.
      step: of the run.
      saved: rows read by the step of each checkpoint.
      batch_size: of the first checkpoint after the step, else of the newest.

    Raises:
      UserError: the batch size changed in between, and nothing says where; or metrics.jsonl cannot be
        read.
    """
    logged, restarts = _logged(run_dir / FILE)
    read = {0: 0} | logged | dict(saved)
    steps = sorted(read)
    after = bisect.bisect_right(steps, step)
    begin = steps[after - 1]
    if after < len(steps):
        end = steps[after]
        size, rest = divmod(read[end] - read[begin], end - begin)
        # One process did all of these steps if it logged the last and went on from none of the others.
        # Where that is not known, it takes two changes that cancel each other to mislead.
        alone = end in logged and not any(begin < restart < end for restart in restarts)
        known = size > 0 and not rest and (end - begin == 1 or alone or size == batch_size)
    else:
        end, size, newest = step + 1, batch_size, max(saved)
        known = read[begin] - read[newest] == (begin - newest) * size
    if not known:
        raise _unknown(run_dir, step, begin, end)
    first = read[begin] + (step - begin) * size
    return range(first, first + size)


def _logged(path: Path) -> tuple[dict[int, int], list[int]]:
    """Return the rows read by each logged step, and the steps that the run went on from."""
    try:
        records, _ = sort_out(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}; it says which rows a step read: make it readable, "
            "or move it away"
        ) from error
    logged = {one["step"]: one[ROWS] for one in records if isinstance(one.get(ROWS), int)}
    return logged, [one[RESUMED] for one in records if isinstance(one.get(RESUMED), int)]


def _unknown(run_dir: Path, step: int, begin: int, end: int) -> UserError:
    return UserError(
        f"{run_dir}: which rows step {step} read is not known: train.batch_size changed between steps {begin} and "
        f"{end}, there is no checkpoint between them, and metrics.jsonl has no line that says where; put back "
        "what is missing there, or name a step before or after (train.log_every=1 and checkpoint.keep_every "
        "keep all of them known)"
    )
