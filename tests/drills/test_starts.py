"""Starts that cannot succeed, and many at once, done to real runs: each says why within seconds."""

import signal
import time

import pytest

from maxlm.config.cluster.exit_codes import Exit
from tests.drills.conftest import SPLIT, start

TOLD_SECONDS = 20

OTHER_VERSION = """
import importlib.metadata as metadata
import sys
real = metadata.version
metadata.version = lambda name: "0.0.1" if name == "optax" else real(name)
from maxlm.cli import main
sys.exit(main())
"""


def place(index, count, port=45671):
    return {
        "MAXLM_COORDINATOR": f"127.0.0.1:{port}",
        "MAXLM_NUM_PROCESSES": str(count),
        "MAXLM_PROCESS_ID": str(index),
    }


@pytest.mark.slow
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


@pytest.mark.slow
def test_processes_that_are_too_few_end_when_their_time_is_over(write_run, tmp_path):
    path = write_run()
    options = ["runtime.timeouts.start_seconds=30"]
    process = start(path, *SPLIT, *options, environment=place(0, 2, 45673))
    code = process.wait(timeout=120)
    output = path.with_suffix(".log").read_text()
    assert code == Exit.FAILED, output
    assert "they did not find each other" in output
    assert "not all 2 have come" in output
    assert "stack" not in output.lower()


def test_mixed_versions_are_named(write_run, tmp_path, record_property):
    path = write_run()
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    began = time.monotonic()
    processes = [
        start(
            path,
            *SPLIT,
            log=logs[index],
            launcher=["-c", OTHER_VERSION] if index else (),
            environment=place(index, 2, 45672),
        )
        for index in range(2)
    ]
    codes = [process.wait(timeout=300) for process in processes]
    seconds = time.monotonic() - began
    record_property("seconds", round(seconds, 1))
    assert Exit.MISTAKE in codes
    output = logs[0].read_text()
    assert "optax" in output
    assert "0.0.1" in output
    assert "Traceback" not in output
    assert seconds < TOLD_SECONDS


@pytest.mark.slow
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
