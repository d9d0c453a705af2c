"""Stops, stopped and killed processes, and starts that cannot succeed, done to real runs."""

import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from maxlm.config.cluster.exit_codes import Exit
from tests.drills.conftest import (
    ROOT,
    assert_equal_runs,
    last_step,
    reach,
    run_until_done,
    start,
    undisturbed,
)

pytestmark = pytest.mark.slow

SERVED_SECONDS = 5
TOLD_SECONDS = 20
TWO = [str(ROOT / "launch" / "local.py"), "-n", "2", "--", "maxlm"]
SPLIT = ["mesh.data=2", "runtime.device_count=1"]


def workers_of(launcher):
    """Return the process ids of a launcher's workers, once there are two."""
    while True:
        path = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        found = [int(pid) for pid in path.read_text().split()]
        if len(found) == 2 or launcher.poll() is not None:
            return found
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_at_random_moments_of_start_up(number, write_run, tmp_path, record_property):
    """Compiled anew each time: much of a start is the compiler."""
    tries, rng, late, codes = 15, random.Random(int(number)), [], []
    path = write_run(train={"num_steps": 10**6}, runtime={"compile_cache": None})
    began = time.monotonic()
    process = start(path)
    reach(tmp_path / "run", 1, process, seconds=600)
    whole = time.monotonic() - began
    process.kill()
    process.wait()
    for _ in range(tries):
        process = start(path)
        time.sleep(rng.uniform(0.02, 1) * whole)
        process.send_signal(number)
        sent = time.monotonic()
        codes.append(process.wait(timeout=120))
        late.append(time.monotonic() - sent)
    record_property("signals", tries)
    record_property("start_seconds", round(whole, 1))
    record_property("stopped_with_75", codes.count(Exit.STOPPED))
    record_property("longest_seconds", round(max(late), 2))
    assert codes == [Exit.STOPPED] * tries
    assert max(late) < SERVED_SECONDS


def test_kills_of_one_of_two_processes(write_run, tmp_path, record_property):
    sections = {"train": {"num_steps": 400, "eval_every": 100}, "checkpoint": {"every": 10}}
    golden = write_run("golden", **sections)
    run_until_done(golden, undisturbed, *SPLIT, launcher=TWO)
    kills, rng, ends = 20, random.Random(0), []

    def kill_one(process, number):
        pids = workers_of(process)
        before = last_step(tmp_path / "run")
        if number >= kills or reach(tmp_path / "run", before + rng.randint(1, 15), process) >= 390:
            return
        os.kill(rng.choice(pids), signal.SIGKILL)
        sent = time.monotonic()
        process.wait(timeout=60)
        ends.append(time.monotonic() - sent)

    path = write_run("run", **sections)
    starts = run_until_done(path, kill_one, *SPLIT, launcher=TWO)
    record_property("kills", len(ends))
    record_property("lost", sum(code == Exit.STOPPED for code in starts.codes))
    record_property("longest_end_seconds", round(max(ends), 1))
    assert starts.codes == [Exit.FAILED] * len(ends) + [Exit.DONE]
    assert_equal_runs(tmp_path / "run", tmp_path / "golden")


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_is_stopped_is_named(index, write_run, tmp_path, record_property):
    path = write_run(train={"num_steps": 10**6})
    process = start(path, *SPLIT, launcher=TWO)
    reach(tmp_path / "run", 3, process, seconds=300)
    pid = workers_of(process)[index]
    os.kill(pid, signal.SIGSTOP)
    sent = time.monotonic()
    assert process.wait(timeout=120) == Exit.FAILED
    record_property("seconds", round(time.monotonic() - sent, 1))
    output = path.with_suffix(".log").read_text()
    assert f"process {index} (pid {pid}) is stopped (SIGSTOP" in output
    assert time.monotonic() - sent < 60


def test_a_process_that_hangs_is_named_and_all_write_their_stacks(
    write_run, tmp_path, record_property
):
    program = """
import os, sys, time
from maxlm.cli import main
from maxlm.data import loader
real = loader.device_batch
def stuck(dataset, row, sharding):
    if os.environ["MAXLM_PROCESS_ID"] == "1" and row > 60:
        time.sleep(1000)
    return real(dataset, row, sharding)
loader.device_batch = stuck
sys.exit(main())
"""
    path = write_run(train={"num_steps": 10**6, "eval_every": 0})
    launcher = [*TWO[:-1], sys.executable, "-c", program]
    process = start(path, *SPLIT, "runtime.timeouts.step_seconds=30", launcher=launcher)
    began = time.monotonic()
    assert process.wait(timeout=300) == Exit.FAILED
    record_property("seconds", round(time.monotonic() - began, 1))
    output = path.with_suffix(".log").read_text()
    assert "has taken longer than runtime.timeouts.step_seconds=30" in output
    assert re.search(r"process 1 \(pid \d+ on .*\) is in step .*; the others wait for it", output)
    for index in range(2):
        stacks = (tmp_path / "run" / "stacks" / f"process-{index}.txt").read_text()
        assert ("in stuck" in stacks) == (index == 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_of_two_stops_both(write_run, tmp_path, number):
    path = write_run(train={"num_steps": 10**6})
    process = start(path, *SPLIT, launcher=TWO)
    reach(tmp_path / "run", 3, process, seconds=300)
    os.kill(workers_of(process)[1], number)
    assert process.wait(timeout=60) == Exit.STOPPED
    output = path.with_suffix(".log").read_text()
    stopped = int(re.search(r"stopped after step (\d+) of", output)[1])
    assert (tmp_path / "run" / "checkpoints" / f"{stopped:08}").is_dir()


def test_simultaneous_starts_have_one_owner(write_run, tmp_path, record_property):
    path = write_run(train={"num_steps": 10**6})
    logs = [tmp_path / f"{number}.log" for number in range(20)]
    processes = [start(path, log=log) for log in logs]
    waiting = list(processes)
    deadline = time.monotonic() + 900
    while len(waiting) > 1 and time.monotonic() < deadline:
        waiting = [process for process in waiting if process.poll() is None]
        time.sleep(0.1)
    owners = [process for process in processes if process.poll() is None]
    for process in owners:
        process.terminate()
        assert process.wait(timeout=60) == Exit.STOPPED
    record_property("starts", len(processes))
    record_property("owners", len(owners))
    assert len(owners) == 1
    codes = [process.returncode for process in processes if process not in owners]
    assert codes == [Exit.MISTAKE] * 19
    assert sum("is in use by another job" in log.read_text() for log in logs) == 19


# --- starts that cannot succeed -------------------------------------------------------------------

OTHER_VERSION = """
import importlib.metadata as metadata
real = metadata.version
metadata.version = lambda name: "0.0.1" if name == "optax" else real(name)
"""


def place(index, count, port=45671):
    return {
        "MAXLM_COORDINATOR": f"127.0.0.1:{port}",
        "MAXLM_NUM_PROCESSES": str(count),
        "MAXLM_PROCESS_ID": str(index),
    }


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([place(1, 2, 1)], "nothing answers at MAXLM_COORDINATOR=127.0.0.1:1"),
        ([place(0, 3), place(1, 3)], "process 0 answers at 127.0.0.1:45671, but not all 3 have"),
    ],
    ids=["coordinator unreachable", "wrong process count"],
)
def test_processes_that_do_not_find_each_other_say_so(
    places, expected, write_run, tmp_path, record_property
):
    path = write_run()
    began = time.monotonic()
    processes, logs = [], []
    for number, environment in enumerate(places):
        logs.append(tmp_path / f"{number}.log")
        processes.append(start(path, *SPLIT, log=logs[-1], environment=environment))
    try:
        while time.monotonic() < began + 300 and expected not in logs[-1].read_text():
            assert processes[-1].poll() is None, logs[-1].read_text()
            time.sleep(0.1)
        seconds = time.monotonic() - began
        assert expected in logs[-1].read_text()
        # And they still hear a signal.
        for process in processes:
            process.send_signal(signal.SIGINT)
        assert [process.wait(timeout=30) for process in processes] == [Exit.STOPPED] * len(places)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    record_property("seconds", round(seconds, 1))
    assert seconds < TOLD_SECONDS


def test_processes_that_are_too_few_end_when_their_time_is_over(write_run, tmp_path):
    path = write_run()
    options = ["runtime.timeouts.start_seconds=30"]
    process = start(path, *SPLIT, *options, environment=place(0, 2, 45673))
    assert process.wait(timeout=120) == Exit.FAILED
    output = path.with_suffix(".log").read_text()
    assert "they did not find each other" in output
    assert "not all 2 have come" in output


def test_mixed_versions_are_named(write_run, tmp_path, record_property):
    (tmp_path / "sitecustomize.py").write_text(OTHER_VERSION)
    path = write_run()
    other = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    began = time.monotonic()
    processes = [
        start(
            path,
            *SPLIT,
            log=logs[index],
            environment={**place(index, 2, 45672), **(other if index else {})},
        )
        for index in range(2)
    ]
    codes = [process.wait(timeout=300) for process in processes]
    record_property("seconds", round(time.monotonic() - began, 1))
    assert Exit.MISTAKE in codes
    output = logs[0].read_text()
    assert "optax" in output
    assert "0.0.1" in output
    assert "Traceback" not in output
