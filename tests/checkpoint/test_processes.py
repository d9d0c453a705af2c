"""Two real processes, connected by gloo, that save, restore, fail and stop together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maxlm.checkpoint import CheckpointReader, RunDirectory

ROOT = Path(__file__).parents[2]
JOB = Path(__file__).with_name("two_process_job.py")


def launch(run_dir, action, count=2):
    command = [
        sys.executable,
        ROOT / "launch" / "local.py",
        "-n",
        str(count),
        "--",
        sys.executable,
        JOB,
        run_dir,
        action,
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    return subprocess.run(
        command,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def results(run_dir, count=2):
    return [json.loads((run_dir / f"result{index}").read_text()) for index in range(count)]


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    job = launch(run_dir, "save")
    assert job.returncode == 0, job.stderr
    assert results(run_dir) == [{"processes": 2}] * 2
    assert CheckpointReader(run_dir / "checkpoints").steps() == [3, 2]
    return run_dir


@pytest.fixture
def saved(saved_once, tmp_path):
    return Path(shutil.copytree(saved_once, tmp_path / "run"))


@pytest.mark.parametrize("count", [2, 1])
def test_what_two_save_two_or_one_restore(count, saved):
    job = launch(saved, "restore", count)
    assert job.returncode == 0, job.stderr
    expected = {
        "latest": 3,
        "step": 3,
        "record": {"token_hash": f"{3:016x}", "step": 3},
        "equal": True,
    }
    assert results(saved, count) == [expected] * count


def test_damaged_newest_falls_back_on_both(saved):
    for file in (saved / "checkpoints" / "00000003" / "state").rglob("*"):
        if "ocdbt.process_1" in str(file) and file.is_file() and file.stat().st_size > 2000:
            file.write_bytes(file.read_bytes()[:-1000] + bytes(1000))
    job = launch(saved, "restore")
    assert job.returncode == 0, job.stderr
    assert [(result["step"], result["equal"]) for result in results(saved)] == [(2, True)] * 2
    assert "damaged checkpoint" in job.stderr
    assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == [
        "00000002",
        "00000003.damaged",
        "00000004",
    ]


def test_what_one_process_reads_back_as_something_else_replaces_nothing(tmp_path):
    job = launch(tmp_path, "misread")
    assert job.returncode == 0, job.stderr
    first, second = (result["error"] for result in results(tmp_path))
    assert "step 2 was not saved: what another process read back is not what it wrote" in first
    assert "step 2 was not saved: read back, the array b is not what was written" in second
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000001", "00000002.damaged"]


def test_second_job_is_refused_with_one_message(tmp_path):
    with RunDirectory.open(tmp_path):
        job = launch(tmp_path, "second_job")
    assert job.returncode == 2
    assert f"in use by another job (process {os.getpid()} on host" in job.stderr
    assert "Traceback" not in job.stderr


@pytest.mark.parametrize(
    ("action", "code", "text"),
    [
        ("mistake", 2, ": only this process has a wrong path"),
        ("mistake_while_saving", 2, ": only this process has a wrong path"),
        ("crash", 1, "KeyError: 'lost'"),
    ],
)
def test_a_process_that_fails_alone_ends_all(action, code, text, tmp_path):
    begin = time.monotonic()
    job = launch(tmp_path, action)
    assert job.returncode == code, job.stderr
    assert text in job.stderr
    assert "process 1 of 2 on" in job.stderr
    assert f"exited with code {code}" in job.stderr
    assert time.monotonic() - begin < 30


def test_signal_to_one_stops_all_after_the_same_step(tmp_path):
    job = launch(tmp_path, "stop")
    assert job.returncode == 0, job.stderr
    first, second = results(tmp_path)
    assert first == second
    assert 5 <= first["steps"] <= 7
    assert "stopping after step" in job.stderr


def test_survivor_of_a_killed_process_ends_without_a_launcher(tmp_path):
    """Under a cluster's scheduler nobody but the heartbeat tells the others."""
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    address = f"127.0.0.1:{20000 + os.getpid() % 20000}"
    jobs = [
        subprocess.Popen(
            [sys.executable, JOB, tmp_path, "wait"],
            env={
                **environment,
                "PYTHONPATH": str(ROOT),
                "MAXLM_COORDINATOR": address,
                "MAXLM_NUM_PROCESSES": "2",
                "MAXLM_PROCESS_ID": str(index),
            },
            stderr=subprocess.DEVNULL,
        )
        for index in range(2)
    ]
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        jobs[1].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        assert jobs[0].wait(timeout=60) != 0
        assert time.monotonic() - begin < 30
    finally:
        for job in jobs:
            job.kill()
            job.wait()
