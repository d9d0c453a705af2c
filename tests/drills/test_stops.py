"""Stops, and stopped and killed processes, done to real runs."""

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
    SPLIT,
    TWO,
    assert_equal_runs,
    last_step,
    reach,
    run_until_done,
    start,
    undisturbed,
)

pytestmark = pytest.mark.slow

SERVED_SECONDS = 5
SECOND_SIGNALS, MOST_TRIES = 2, 12


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


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_sigterm_in_the_save_of_the_first(processes, write_run, tmp_path, record_property):
    """Until it came twice before the save was over, which its half-written checkpoint shows."""
    sections = {"train": {"num_steps": 200, "eval_every": 50}, "checkpoint": {"every": 40}}
    split = {"launcher": TWO} if processes == 2 else {}
    overrides = SPLIT if processes == 2 else []
    run_until_done(write_run("golden", **sections), undisturbed, *overrides, **split)
    run_dir, seed = tmp_path / "run", time.time_ns() % 2**32
    rng, left = random.Random(seed), []

    def insist(process, number):
        if sum(left) == SECOND_SIGNALS:
            return
        assert number < MOST_TRIES, f"{sum(left)} of {number} second signals came in a save"
        reach(run_dir, last_step(run_dir) + rng.randint(1, 4), process, seconds=300)
        process.send_signal(signal.SIGTERM)
        while not half_written(run_dir) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        left.append(half_written(run_dir))

    path = write_run("run", **sections)
    starts = run_until_done(path, insist, *overrides, **split)
    # One that came too late for the save found everything saved.
    for code, in_save in zip(starts.codes, left, strict=False):
        assert code == 128 + signal.SIGTERM or (code == Exit.STOPPED and not in_save)
    record_property("seed", seed)
    record_property("second signals in a save", sum(left))
    record_property("others", len(left) - sum(left))
    assert_equal_runs(run_dir, tmp_path / "golden")
    record_property("steps that differ", 0)


def half_written(run_dir):
    """Tell whether a checkpoint is being saved, or was when its process ended."""
    folder = run_dir / "checkpoints"
    return folder.exists() and any("tmp" in path.name for path in folder.iterdir())


@pytest.mark.timeout(3600)
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
