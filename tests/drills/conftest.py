"""What drills share: a tiny prepared text, `maxlm train` as a process of its own, restarts until it
is done, and the golden run, which nothing happened to.

A drill states its figures by `record_property(name, value)`; `scripts/drills` makes the table of
benchmarks/reliability.md of them.
"""

import os
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from maxlm.config.cluster.exit_codes import Exit
from tests import audit
from tests.conftest import PATIENCE, QUICK_COMPILE
from tests.train.conftest import ROOT, curve, read_metrics, tiny_data, write_run

__all__ = ["ROOT", "curve", "read_metrics", "tiny_data", "write_run"]

MOST_STARTS = 400
TWO = [str(ROOT / "launch" / "local.py"), "-n", "2", "--", "maxlm"]
SPLIT = ["mesh.data=2", "runtime.device_count=1"]


class Starts(NamedTuple):
    """How a run came to its end.

    Attributes:
      codes: the exit code of each process; negative for a signal's number.
      seconds: of wall time, from the first start to the end of the last process.
      output: what the last process printed.
    """

    codes: list[int]
    seconds: float
    output: str


def start(path, *overrides, log=None, launcher=(), environment=None):
    """Start `maxlm train`, watched by the audit (`tests/audit.py`); its output is added to a file, so
    that no pipe ever fills up.

    The file lies beside the YAML unless `log` says where; nothing may be written elsewhere.
    `launcher` stands in place of `-m maxlm`, such as ["-c", SOURCE] or
    ["launch/local.py", "-n", "2", "--", "maxlm"].
    """
    log = log or path.with_suffix(".log")
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *(launcher or ["-m", "maxlm"]), "train", str(path), *overrides],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={
                **os.environ,
                "XLA_FLAGS": f"{QUICK_COMPILE} {PATIENCE}",
                **audit.environment_of(path.parent),
                **(environment or {}),
            },
        )


def reach(run_dir, step, process, seconds=120):
    """Wait until metrics of `step` or a later one are written, or the process has ended; return
    the last step that is.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        reached = last_step(run_dir)
        if reached >= step or process.poll() is not None:
            return reached
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"step {step} was not reached in {seconds} s")


def last_step(run_dir):
    """Return the last step in a run's metrics.jsonl, 0 without one."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return 0
    # The last line may be in the making.
    lines = [line for line in path.read_bytes().split(b"\n")[:-1] if line.startswith(b'{"step": ')]
    return int(lines[-1].split(b",")[0].rstrip(b"}").removeprefix(b'{"step": ')) if lines else 0


def run_until_done(path, disturb, *overrides, most_starts=MOST_STARTS, seconds=1800, **options):
    """Start a run until it is done, as a launcher does; return its `Starts`.

    Args:
      path: of its YAML.
      disturb: called with each process and its number, from 0; it may kill it, or do nothing.
      overrides: settings, as on a command line.
      most_starts: the drill has failed after so many.
      seconds: the drill has failed if a process takes longer.
      options: of `start`.
    """
    codes, began = [], time.monotonic()
    log = path.with_suffix(".log")
    while len(codes) < most_starts:
        begin = log.stat().st_size if log.exists() else 0
        process = start(path, *overrides, log=log, **options)
        try:
            disturb(process, len(codes))
            codes.append(process.wait(timeout=seconds))
        finally:
            process.kill()
            process.wait()
        output = log.read_bytes()[begin:].decode(errors="replace")
        assert codes[-1] != Exit.MISTAKE, output
        if codes[-1] == Exit.DONE:
            return Starts(codes, time.monotonic() - began, output)
    pytest.fail(f"not done after {most_starts} starts: {codes}\n{output}")


def undisturbed(process, number):
    """Do nothing to a process: how a golden run is disturbed."""


def assert_equal_runs(run_dir, golden_dir):
    """Compare the losses' bits and the tokens' hash of every step."""
    found, golden = curve(run_dir), curve(golden_dir)
    assert len(golden) > 0
    assert found == golden
