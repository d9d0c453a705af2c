import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from maxlm import runtime
from maxlm.config.errors import UserError
from maxlm.config.schema import ProfileConfig, RuntimeConfig
from maxlm.runtime.processes import connect, launcher_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def start_script():
    """Return a function that starts Python code in a process of its own; what still runs in the end
    is killed.
    """
    processes = []

    def start_one(code, **environment):
        set_here = ("JAX_PLATFORMS", "XLA_FLAGS", "PJRT_NPROC")
        clean = {k: v for k, v in os.environ.items() if k not in set_here}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=ROOT,
                env={**clean, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()


# --- start ----------------------------------------------------------------------------------------


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


def test_one_process_agrees_with_itself():
    assert runtime.on_first_process(lambda: [1, "a"]) == [1, "a"]
    assert runtime.all_true(True) is True
    assert runtime.all_true(False) is False
    with pytest.raises(KeyError), runtime.fail_together():
        raise KeyError


# --- signals --------------------------------------------------------------------------------------

LOOP = """
import logging, sys, time, hashlib
from maxlm import runtime
logging.basicConfig(stream=sys.stdout, format="%(message)s")
with runtime.StopSignal() as stop:
    print("ready", flush=True)
    for step in range(1, 10**6):
        BODY
        if stop.requested(step):
            break
print("stopped cleanly", flush=True)
"""
IN_PYTHON = LOOP.replace("BODY", "time.sleep(0.01)")
# Minutes, deaf to Python's handlers.
IN_C = LOOP.replace("BODY", "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_stops_after_the_step(number, start_script):
    process = start_script(IN_PYTHON)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert f"{number.name}: finishing this step" in out
    assert "stopping after step" in out
    assert out.endswith("stopped cleanly\n")


@pytest.mark.parametrize(
    "code", [IN_C, IN_PYTHON.replace("if stop", "if False and stop")], ids=["c", "python"]
)
def test_second_signal_leaves_at_once(code, start_script):
    process = start_script(code)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: finishing" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert "second signal (SIGINT): leaving at once" in err
    assert time.monotonic() - begin < 5


def test_handlers_are_given_back():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with runtime.StopSignal() as stop:
        assert not stop.requested(1)
        assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


# --- watchdog, profiler ---------------------------------------------------------------------------


def test_watchdog_shows_stacks_and_exits(start_script):
    process = start_script("""
import time
from maxlm import runtime
def a_step_that_hangs():
    time.sleep(60)
watchdog = runtime.Watchdog(0.5)
for _ in range(4):
    watchdog.arm()
    time.sleep(0.2)  # longer than the limit in total, but each step is short enough
print("in time", flush=True)
watchdog.arm()
a_step_that_hangs()
""")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert out == "in time\n"
    assert "Timeout" in err
    assert "a_step_that_hangs" in err


def test_watchdog_is_silent_when_off(start_script):
    process = start_script("""
import time
from maxlm import runtime
for watchdog in (runtime.Watchdog(0.2), runtime.Watchdog(None)):
    watchdog.arm()
    watchdog.disarm()
runtime.Watchdog(None).arm()
time.sleep(0.5)
""")
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


def test_each_step_touches_the_heartbeat(tmp_path, monkeypatch):
    path = tmp_path / "heartbeat"
    monkeypatch.setenv("MAXLM_HEARTBEAT", str(path))
    watchdog = runtime.Watchdog(None)
    assert not path.exists()  # start-up is not a step
    watchdog.arm()
    os.utime(path, (1, 1))
    watchdog.arm()
    assert time.time() - path.stat().st_mtime < 60


def test_profile_window_traces_its_steps_only(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append(("start", path)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    window = runtime.ProfileWindow(ProfileConfig(start_step=3, num_steps=2), tmp_path)
    seen = []
    for step in range(1, 8):
        window.update(step)
        seen.append((step, len(calls)))
    window.close()
    assert seen == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2), (7, 2)]
    assert calls == [("start", str(tmp_path)), ("stop",)]


def test_profile_window_that_is_over_is_told_once(tmp_path, caplog):
    window = runtime.ProfileWindow(ProfileConfig(start_step=3, num_steps=2), tmp_path)
    for step in range(5, 9):
        window.update(step)
    assert caplog.messages == [
        "runtime.profile.start_step=3 was before this process began, at step 5: no trace"
    ]


def test_profile_window_that_the_run_ends_in_is_written(tmp_path):
    window = runtime.ProfileWindow(ProfileConfig(start_step=1, num_steps=100), tmp_path)
    window.update(1)
    jax.block_until_ready(jax.numpy.ones(3) + np.ones(3))
    window.close()
    window.close()
    assert any(path.is_file() for path in tmp_path.rglob("*.xplane.pb"))
    runtime.ProfileWindow(None, tmp_path).update(1)
