"""Two real processes with four fake devices each: one process' losses; and they end together."""

import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np

from maxlm.config.cluster.exit_codes import Exit
from maxlm.metrics.history.events import read_events
from tests.train.conftest import ROOT, curve, finish, start, train

LAUNCHER = [str(ROOT / "launch" / "local.py"), "-n", "2", "--", "maxlm"]
MESH = [
    "mesh.data=2",
    "mesh.fsdp=2",
    "mesh.tensor=2",
    "train.batch_size=8",
    "train.num_steps=12",
    "train.eval_every=5",
]


def test_two_processes_give_the_losses_of_one(write_run, tmp_path):
    train(write_run("one"), *MESH, "runtime.device_count=8")
    output = finish(start(write_run("two"), *MESH, "runtime.device_count=4", launcher=LAUNCHER))
    assert output.count("step 12/12") == 1  # process 0 alone speaks
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert [row[2] for row in one] == [row[2] for row in two]
    losses = [[float.fromhex(row[1]) for row in rows] for rows in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    # The first process tells what happened, as nothing did to the other alone.
    found, _ = read_events(tmp_path / "two")
    assert [event.kind for event in found if event.kind in ("start", "compiled", "end")] == [
        *("start", "compiled", "end")
    ]
    assert found[0].values["num_processes"] == 2
    # (On a busy machine a small program may take it a second to compile, and that is told.)
    of_other = tmp_path / "two" / "events-1.jsonl"
    lines = of_other.read_text().splitlines() if of_other.exists() else []
    assert {json.loads(line)["kind"] for line in lines} <= {"late_compile"}
    # And what two processes saved, one process resumes.
    output = train(
        tmp_path / "two.yaml",
        *MESH,
        "runtime.device_count=8",
        "train.num_steps=14",
        "schedule.total_steps=12",
    )
    assert "resuming: after step 12" in output


def test_killing_one_process_ends_the_other_within_seconds(write_run, tmp_path):
    path = write_run(train={"num_steps": 100_000})
    process = start(
        path, *MESH[:4], "runtime.device_count=4", "train.num_steps=100000", launcher=LAUNCHER
    )
    pids = []
    while len(pids) < 2 or not _has_step(tmp_path / "run", 3):
        pids = _children(process.pid)
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode not in (0, 2)
    assert re.search(r"process 1\b", output), output
    assert not any(_alive(pid) for pid in pids)


def test_a_signal_to_one_process_stops_all_after_the_same_step(write_run, tmp_path):
    path = write_run(train={"num_steps": 100_000})
    process = start(
        path, *MESH[:4], "runtime.device_count=4", "train.num_steps=100000", launcher=LAUNCHER
    )
    while not _has_step(tmp_path / "run", 3):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    os.kill(_children(process.pid)[1], signal.SIGTERM)
    # Both saved, so both were at one step, and both say that it is worth starting again.
    output = finish(process, code=Exit.STOPPED)
    stopped = int(re.search(r"stopped after step (\d+) of 100000", output)[1])
    assert (tmp_path / "run" / "checkpoints" / f"{stopped:08}").is_dir()
    assert f"resume with: python {LAUNCHER[0]} -n 2 -- maxlm train {path}" in output


def _has_step(run_dir, step):
    path = run_dir / "metrics.jsonl"
    return path.exists() and f'"step": {step},' in path.read_text()


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid):
    """Tell whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
