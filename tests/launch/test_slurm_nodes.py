"""A run on a real Slurm of two nodes: it goes on after signals, a time limit and the death of a node,
with the losses of a run that was never stopped.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from maxlm.config.cluster.exit_codes import Exit
from maxlm.metrics.history.events import read_events
from tests.conftest import PATIENCE, QUICK_COMPILE
from tests.launch.slurm_cluster import SlurmCluster, missing
from tests.train.conftest import make_run, tiny_data

__all__ = ["tiny_data"]  # a fixture

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.timeout(2400),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def submit(cluster, tmp_path):
    """submit(command, settings...) -> the job's id; with a program of this Python as `maxlm`."""
    bin_folder = tmp_path / "venv" / "bin"
    bin_folder.mkdir(parents=True)
    maxlm = bin_folder / "maxlm"
    maxlm.write_text(f'#!/bin/bash\nexec {sys.executable} -m maxlm "$@"\n')
    maxlm.chmod(0o755)
    path = tmp_path / "cluster.yaml"

    # A job of the test before may still be ending: with `least_nodes` one would begin on one node.
    cluster.wait(lambda: set(cluster.nodes()) == {"idle"})

    def submit(*command, array=(), **settings):
        # Both nodes are this machine, and only their names lead nowhere.
        ports = 20_000 + os.getpid() % 10_000 + len(list(tmp_path.glob("logs/*")))
        section = {
            "kind": "slurm",
            "nodes": 2,
            "venv": str(tmp_path / "venv"),
            "log_dir": str(tmp_path / "logs"),
            "environment": {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{ports}",
                "PYTHONPATH": str(ROOT),
                "XLA_FLAGS": f"{QUICK_COMPILE} {PATIENCE}",
            },
            "retries": {"pause_seconds": 1.0},
            **settings,
        }
        path.write_text(yaml.safe_dump({"cluster": section}))
        options = ["--", *command]
        if array:
            (tmp_path / "commands").write_text("".join(f"{line}\n" for line in array))
            options = ["--array", str(tmp_path / "commands"), "--at-a-time", "1"]
        launcher = [sys.executable, str(ROOT / "launch/slurm.py"), "submit", str(path), *options]
        return cluster.run(*launcher).split(";")[0].split()[1]

    submit.status = lambda *jobs, code=0: cluster.run(
        sys.executable, str(ROOT / "launch/slurm.py"), "status", str(path), *jobs, code=code
    )
    yield submit
    cluster.run("scancel", "--user=root", "--signal=KILL", "--full")
    cluster.run("scancel", "--user=root")


def write_run(tiny_data, tmp_path, name, **train):
    config = make_run(tiny_data, tmp_path / name)
    config["train"] |= {"num_steps": 60, "eval_every": 0, **train}
    config["checkpoint"] |= {"every": 10}
    config["mesh"] = {"data": 2, "fsdp": 1}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def curve(run_dir):
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        (one["step"], one["train/loss_hex"], one["data/token_hash"])
        for one in map(json.loads, lines)
    ]


def state(cluster, job):
    return cluster.job(job)["JobState"]


def ended(cluster, job):
    cluster.wait(lambda: state(cluster, job) in ("COMPLETED", "FAILED", "CANCELLED"), 600)
    return state(cluster, job)


def test_a_run_goes_on_after_a_signal_a_dead_process_and_a_dead_node(
    cluster, submit, tiny_data, tmp_path
):
    whole = write_run(tiny_data, tmp_path, "whole")
    job = submit("maxlm", "train", str(whole))
    assert ended(cluster, job) == "COMPLETED", (tmp_path / "logs").rglob("*")
    wanted = curve(tmp_path / "whole")
    assert wanted[-1][0] == 60

    # Slow enough to be met at any step: every step is followed by an evaluation.
    path = write_run(tiny_data, tmp_path, "run", eval_every=1, eval_batches=4)
    run_dir = tmp_path / "run"
    job = submit("maxlm", "train", str(path))

    def wait_for(step):
        cluster.wait(lambda: len(curve(run_dir)) >= step, 480)

    wait_for(5)
    cluster.run("scancel", "--signal=TERM", job)
    cluster.start_now(job)
    logs = tmp_path / "logs" / job
    assert (logs / "0" / "verdict").read_text() == f"{Exit.STOPPED}\n"
    assert len({path.read_text() for path in (logs / "0").glob("*.exit")}) == 1
    stopped = len(curve(run_dir))
    assert (run_dir / "checkpoints" / f"{stopped:08}").is_dir()
    assert "stopped and saved" in submit.status(job)

    # One process is killed: the job fails, pauses, and goes on.
    wait_for(stopped + 8)
    (victim,) = [pid for pid in processes(path) if environment(pid).get("SLURM_PROCID") == "1"]
    os.kill(victim, signal.SIGKILL)
    cluster.start_now(job)
    assert (logs / "1" / "verdict").read_text() == f"{Exit.FAILED}\n"
    assert (logs / "failures").read_text() == "1\n"

    # A node is gone: Slurm finds out, and the job goes on when it is back.
    wait_for(stopped + 16)
    kill_node(cluster, "n2")
    cluster.wait(lambda: state(cluster, job) == "PENDING", 480)
    cluster.start("n2", ["slurmd", "-D", "-N", "n2"])
    cluster.wait(lambda: not any("down" in node for node in cluster.nodes()), 120)
    cluster.start_now(job)
    assert ended(cluster, job) == "COMPLETED"
    assert curve(run_dir) == wanted
    shown = submit.status(job)
    assert shown.count("start ") >= 4
    assert ": done" in shown.splitlines()[-1]


def processes(path):
    """Return the pids of `maxlm train PATH`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:4] == [b"-m", b"maxlm", b"train"] and words[4] == str(path).encode():
            found.append(int(folder.name))
    return found


def sruns(job):
    """Return the pids of the job's `srun`."""
    found = []
    for pid in descendants():
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
            if name == b"srun" and environment(pid).get("SLURM_JOB_ID") == job:
                found.append(pid)
        except OSError:
            continue
    return found


def environment(pid):
    text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)


def kill_node(cluster, node):
    """Kill a node's slurmd and everything that it has started, as a power cut does."""
    daemon = cluster.processes[node]
    doomed = [pid for pid in descendants() if environment_is_of(pid, node)]
    daemon.kill()
    daemon.wait()
    for pid in doomed:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def descendants():
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def environment_is_of(pid, node):
    """Tell whether a process is a task of the node, or the node's keeper of tasks."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        return environment(pid).get("SLURMD_NODENAME") == node or (
            command.startswith("slurmstepd")
            and environment(pid).get("SLURMD_NODENAME", node) == node
        )
    except OSError:
        return False


def test_a_mistake_is_not_tried_again_and_its_line_is_shown(cluster, submit, tiny_data, tmp_path):
    path = write_run(tiny_data, tmp_path, "wrong")
    job = submit("maxlm", "train", str(path), "train.batch_size=7")
    assert ended(cluster, job) == "FAILED"
    assert cluster.job(job)["Restarts"] == "0"
    assert cluster.job(job)["ExitCode"] == f"{int(Exit.MISTAKE)}:0"
    shown = submit.status(job, code=Exit.FAILED)
    assert "a mistake in settings, files or usage" in shown
    (log,) = (tmp_path / "logs" / job / "0").glob("*.0.log")
    assert "train.batch_size=7 must be divisible" in log.read_text()
    assert "(exited with 2), line 1: maxlm: 1 problem in" in shown


def test_the_time_limit_stops_and_requeues_and_a_cancelled_job_stays_away(
    cluster, submit, tiny_data, tmp_path
):
    path = write_run(tiny_data, tmp_path, "long", num_steps=100_000)
    # Slurm warns up to a minute early.
    job = submit("maxlm", "train", str(path), time="2", stop_seconds=60)
    cluster.wait(
        lambda: state(cluster, job) == "PENDING" and cluster.job(job)["Restarts"] == "1", 240
    )
    assert (tmp_path / "logs" / job / "0" / "verdict").read_text() == f"{Exit.STOPPED}\n"
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    cluster.start_now(job)
    steps = len(curve(tmp_path / "long"))
    cluster.wait(lambda: len(curve(tmp_path / "long")) > steps + 3, 480)
    cluster.run("scancel", job)
    cluster.wait(lambda: state(cluster, job) == "CANCELLED" and not processes(path))
    cluster.wait(lambda: (tmp_path / "logs" / job / "1" / "verdict").exists())
    time.sleep(3)
    assert state(cluster, job) == "CANCELLED"
    verdict = (tmp_path / "logs" / job / "1" / "verdict").read_text()
    assert verdict == f"{Exit.STOPPED}\n"  # and it has saved


def test_a_run_goes_on_with_the_node_that_is_left(cluster, submit, tiny_data, tmp_path):
    path = write_run(tiny_data, tmp_path, "run", num_steps=600, eval_every=1, eval_batches=4)
    path.write_text(path.read_text().replace("mesh:", "mesh:\n  elastic: batch"))
    run_dir = tmp_path / "run"
    job = submit("maxlm", "train", str(path), least_nodes=1)
    cluster.wait(lambda: len(curve(run_dir)) >= 15, 480)
    assert cluster.job(job)["NumNodes"] == "2"
    kill_node(cluster, "n2")
    try:
        cluster.wait(lambda: state(cluster, job) == "PENDING", 480)
        # It ends the step that it has started, by a name that the next start's has, too. In the two
        # minutes that Slurm waits it is over.
        cluster.wait(lambda: not sruns(job), 120)
        cluster.start_now(job)
        assert ended(cluster, job) == "COMPLETED"
    finally:
        cluster.start("n2", ["slurmd", "-D", "-N", "n2"])
        cluster.wait(lambda: not any("down" in node for node in cluster.nodes()), 120)
    assert [step for step, *_ in curve(run_dir)] == list(range(1, 601))
    shown = [line.strip() for line in submit.status(job).splitlines()]
    first, second = (line for line in shown if line.startswith("start "))
    # The process that is left may fail before Slurm ends it: the other is gone.
    assert re.fullmatch(r"start 0 on \S+: (failed|ended by Slurm)", first)
    assert re.fullmatch(r"start 1 on \S+: done", second)
    (resized,) = [one for one in read_events(run_dir)[0] if one.kind == "resized"]
    assert "instead of 2: one device, in 2 microbatches" in resized.text


def test_failures_are_given_up_after_so_many(cluster, submit, tmp_path):
    job = submit("bash", "-c", "exit 3", retries={"most": 1, "pause_seconds": 0.1})
    cluster.start_now(job)
    assert ended(cluster, job) == "FAILED"
    assert (tmp_path / "logs" / job / "failures").read_text() == "2\n"
    assert "giving up" in (tmp_path / "logs" / f"{job}.log").read_text()


def test_an_array_runs_each_line(cluster, submit, tmp_path):
    job = submit(array=[f"touch {tmp_path}/a", f"touch '{tmp_path}/b c'"], nodes=1)
    cluster.wait(lambda: (tmp_path / "a").exists() and (tmp_path / "b c").exists())
    cluster.wait(lambda: len(list((tmp_path / "logs").glob(f"{job}_*/0/verdict"))) == 2)
    shown = subprocess.run(
        [
            sys.executable,
            str(ROOT / "launch/slurm.py"),
            "status",
            str(tmp_path / "cluster.yaml"),
            job,
        ],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.count(": done") == 2
