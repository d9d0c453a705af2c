import socket
import threading
import time
from pathlib import Path

import jax
import pytest

from maxlm import runtime
from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.errors import UserError
from maxlm.config.schema import RuntimeConfig
from maxlm.runtime import processes
from maxlm.runtime.processes import FOR_EVER, connect, launcher_of, waiting_for


@pytest.mark.parametrize("devices", [1, 3])
def test_start_makes_fake_devices_and_a_compile_cache(devices, start_script, tmp_path):
    """Three have a folder that nothing is read from: programs there have no order of collectives."""
    process = start_script(f"""
from maxlm import runtime
from maxlm.config.schema import RuntimeConfig
runtime.start(RuntimeConfig(device_count={devices}, compile_cache={str(tmp_path / "cache")!r}))
import pathlib
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()
names = [path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
workers = sum("XLAEigen" in name for name in names)
print(jax.device_count(), jax.process_count(), jax.config.jax_compilation_cache_dir, workers)
""")
    out, err = process.communicate(timeout=60)
    *found, workers = out.split()
    assert found == [str(devices), "1", str(tmp_path / "cache")], err
    assert any((tmp_path / "cache").iterdir()) == (devices == 1)
    # Each device can wait in a collective, and there are threads left.
    assert int(workers) >= 2 * devices


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
    "flag",
    [
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
        "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    ],
)
def test_flags_that_mix_up_collectives_are_refused(flag, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x {flag}")
    message = f"XLA_FLAGS has {flag}, and runtime.device_count=2: .* remove it from XLA_FLAGS"
    with pytest.raises(UserError, match=message):
        runtime.start(RuntimeConfig(device_count=2))


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
    ("start_seconds", "left", "least"),
    [(1000, 0.5, 0.4), (1000, -1.0, 0), (0.5, None, 0.4)],
    ids=["libraries took long", "all is over", "no watchdog"],
)
def test_processes_look_for_each_other_in_the_time_that_is_left(
    start_seconds, left, least, monkeypatch, caplog
):
    """Else the watchdog would end them before it is said what they wait for."""
    over, codes = threading.Event(), []

    def wait_for_others(initialization_timeout, **_):
        assert initialization_timeout == FOR_EVER  # JAX would abort
        assert over.wait(30)

    def leave(code):
        codes.append(code)
        over.set()

    monkeypatch.setattr(jax.distributed, "initialize", wait_for_others)
    monkeypatch.setattr(processes, "remaining", lambda: left)
    began = time.monotonic()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        names = {"MAXLM_COORDINATOR": address, "MAXLM_PROCESS_ID": "1", "MAXLM_NUM_PROCESSES": "2"}
        connect(names, start_seconds, leave)
    assert codes == [Exit.FAILED]
    assert least <= time.monotonic() - began < 20
    assert (
        f"did not find each other: process 1 of 2 waits for the others: nothing answers at MAXLM_COORDINATOR={address}"
        in caplog.text
    )
    assert "raise runtime.timeouts.start_seconds" in caplog.text


def test_processes_that_have_found_each_other_are_left_alone(monkeypatch):
    codes = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: time.sleep(0.05))
    monkeypatch.setattr(processes, "remaining", lambda: 0.5)
    names = {"MAXLM_COORDINATOR": "a:1", "MAXLM_PROCESS_ID": "1", "MAXLM_NUM_PROCESSES": "2"}
    connect(names, 1000, codes.append)
    time.sleep(1)
    assert codes == []


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
