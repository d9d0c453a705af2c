"""A job that is killed at any moment, also in the middle of a save or a deletion, resumes from a
whole checkpoint.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maxlm.checkpoint import CheckpointReader, RunDirectory
from maxlm.config.errors import UserError

JOB = Path(__file__).with_name("saving_job.py")
ROOT = Path(__file__).parents[2]


def start(run_dir, steps):
    return subprocess.Popen(
        [sys.executable, JOB, run_dir, str(steps)], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def read_line(job):
    line = job.stdout.readline().strip()
    assert line, job.stderr.read()
    return line


def test_resumes_after_every_kill(tmp_path):
    firsts = []
    # A busy machine saves little in between.
    while len(firsts) < 5 or (firsts[-1] <= 5 and len(firsts) < 30):
        job = start(tmp_path, 10**6)
        firsts.append(int(read_line(job).removeprefix("from ")))
        time.sleep(random.uniform(0.05, 0.8))
        job.kill()
        job.communicate()
    job = start(tmp_path, 3)
    firsts.append(int(read_line(job).removeprefix("from ")))
    out, err = job.communicate(timeout=60)
    assert (out.strip(), job.returncode) == ("done", 0), err
    assert firsts == sorted(firsts)
    assert firsts[-1] > 5, "hardly anything was saved between the kills"
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    last = firsts[-1] + 2
    assert names == [f"{last - 1:08d}", f"{last:08d}"]  # nothing left over, nothing damaged


def test_second_job_is_refused_while_the_first_lives(tmp_path):
    job = start(tmp_path, 10**6)
    try:
        read_line(job)
        with (
            pytest.raises(UserError, match=f"in use by another job .process {job.pid} on host"),
            RunDirectory.open(tmp_path),
        ):
            pass
    finally:
        job.kill()
        job.communicate()
    with RunDirectory.open(tmp_path) as run:  # a killed job holds no lock
        assert len(CheckpointReader(run.checkpoints).steps()) >= 0
