import socket
from pathlib import Path

import jax
import pytest

from maxlm import runtime
from maxlm.config.errors import UserError
from maxlm.config.schema import RuntimeConfig
from maxlm.runtime import processes
from maxlm.runtime.processes import FOR_EVER, connect, launcher_of, waiting_for


def test_start_makes_fake_devices_and_a_compile_cache(start_script, tmp_path):
    process = start_script(f"""
from maxlm import runtime
from maxlm.config.schema import RuntimeConfig
runtime.start(RuntimeConfig(device_count=3, compile_cache={str(tmp_path / "cache")!r}))
import pathlib
import jax
names = [path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
workers = sum("XLAEigen" in name for name in names)
print(jax.device_count(), jax.process_count(), jax.config.jax_compilation_cache_dir, workers)
""")
    out, err = process.communicate(timeout=60)
    *found, workers = out.split()
    assert found == ["3", "1", str(tmp_path / "cache")], err
    # Each device can wait in a collective, and there are threads left.
    assert int(workers) >= 6


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_missing_platform_is_a_clear_error(platform, start_script):
    if any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/dev").glob("accel[0-9]*")):
        pytest.skip("this machine has an accelerator")
    process = start_script(f"""
from maxlm import runtime
from maxlm.config.errors import UserError
from maxlm.config.schema import RuntimeConfig
try:
    runtime.start(RuntimeConfig(platform={platform!r}))
except UserError as error:
    print(error)
""")
    out, err = process.communicate(timeout=60)
    assert out.startswith(f"runtime.platform={platform}: JAX finds no such device"), err
    assert "runtime.platform=auto" in out


def test_fake_devices_need_the_cpu():
    with pytest.raises(UserError, match=r"runtime.device_count=2 .* runtime.platform=tpu; remove"):
        runtime.start(RuntimeConfig(platform="tpu", device_count=2))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"MAXLM_NUM_PROCESSES": "2"}, "maxlm"),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}, "Slurm"),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}, None),
        ({"SLURM_STEP_NUM_TASKS": ""}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU slice"),
        ({"TPU_WORKER_HOSTNAMES": "a", "TPU_SKIP_MDS_QUERY": "1"}, None),
    ],
)
def test_several_processes_are_recognised(environment, expected):
    assert launcher_of(environment) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {"MAXLM_NUM_PROCESSES": "2"},
            "MAXLM_NUM_PROCESSES is set without MAXLM_COORDINATOR and MAXLM_PROCESS_ID",
        ),
        (
            {"MAXLM_COORDINATOR": "a:1", "MAXLM_NUM_PROCESSES": "two", "MAXLM_PROCESS_ID": "0"},
            "NUM_PROCESSES=two and",
        ),
        (
            {"MAXLM_COORDINATOR": "a:1", "MAXLM_NUM_PROCESSES": "2", "MAXLM_PROCESS_ID": "2"},
            "_PROCESS_ID=2: give whole numbers, the ids from 0",
        ),
    ],
)
def test_a_place_among_processes_that_is_none(environment, expected):
    with pytest.raises(UserError, match=expected):
        connect(environment)


@pytest.mark.parametrize(
    ("start_seconds", "left", "expected"),
    [(1000, 20.0, 17), (1000, -1.0, 1), (1000, None, 801), (None, None, FOR_EVER)],
    ids=["libraries took long", "all is over", "no watchdog", "no limit"],
)
def test_processes_look_for_each_other_in_the_time_that_is_left(
    start_seconds, left, expected, monkeypatch
):
    """Else the watchdog would end them before JAX has said who is missing."""
    asked = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **values: asked.update(values))
    monkeypatch.setattr(processes, "remaining", lambda: left)
    names = {"MAXLM_COORDINATOR": "a:1", "MAXLM_PROCESS_ID": "1", "MAXLM_NUM_PROCESSES": "2"}
    connect(names, start_seconds)
    assert asked["initialization_timeout"] == expected


def test_what_a_process_that_finds_no_others_waits_for():
    def wait(address, outcome):
        def probe(place, timeout):
            assert place == (address.rpartition(":")[0], 1234)
            if outcome is not None:
                raise outcome
            return socket.socket()

        names = {"MAXLM_COORDINATOR": address, "MAXLM_PROCESS_ID": "1", "MAXLM_NUM_PROCESSES": "3"}
        return waiting_for(names, probe)

    assert (
        "nothing answers at MAXLM_COORDINATOR=a:1234 (Connection refused): has process 0"
        in wait("a:1234", ConnectionRefusedError(111, "Connection refused"))
    )
    assert "nothing answers at MAXLM_COORDINATOR=a:1234 (timed out)" in wait(
        "a:1234", TimeoutError("timed out")
    )
    assert "MAXLM_COORDINATOR=a:1234, but no host of that name" in wait("a:1234", socket.gaierror())
    assert (
        "process 1 of 3 waits for the others: process 0 answers at a:1234, but not all 3"
        in wait("a:1234", None)
    )
    assert "have all of the job's started" in waiting_for({})


def test_one_process_agrees_with_itself():
    assert runtime.on_first_process(lambda: [1, "a"]) == [1, "a"]
    assert runtime.all_true(True) is True
    assert runtime.all_true(False) is False
    with pytest.raises(KeyError), runtime.fail_together():
        raise KeyError
