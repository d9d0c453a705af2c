"""The sbatch file, what it makes of exit codes, and what `status` finds in the logs."""

import itertools
import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from launch import slurm
from launch.failures import failing_line, first_failure
from launch.slurm_script import JUDGE, Job, make_script
from maxlm.config.cluster.exit_codes import Exit, judge
from maxlm.config.cluster.slurm import SlurmCluster

COMMAND = ["maxlm", "train", "a run.yaml", "x='$HOME'"]


def script(array=False, **settings):
    commands = [COMMAND, ["true"]] if array else [COMMAND]
    return make_script(Job(SlurmCluster(**settings), commands, array=array, launcher="launch --"))


def options(text):
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH --")]
    return dict((*line[10:].split("=", 1), "")[:2] for line in lines)


def test_one_process_a_gpu_and_one_a_node_without():
    gpus = options(script(nodes=4, gpus_per_node=8, cpus_per_process=12))
    assert {name: gpus[name] for name in ("nodes", "ntasks-per-node", "gpus-per-node")} == {
        "nodes": "4",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
    }
    plain = options(script(nodes=3))
    assert (plain["nodes"], plain["ntasks-per-node"]) == ("3", "1")
    assert "gpus-per-node" not in plain


def test_settings_become_options_and_stops_are_wired():
    given = options(
        script(
            partition="gpu",
            account="a",
            qos="q",
            constraint="h100&ib",
            time="2-00:00:00",
            memory="0",
            exclusive=True,
            stop_seconds=300,
            log_dir="my logs",
            options=["--reservation=r"],
        )
    )
    assert given["signal"] == "USR1@300"
    assert {"requeue", "exclusive"} <= given.keys()
    assert given["output"] == f"'{Path.cwd()}/my logs/%j.log'"
    assert [
        given[name] for name in ("partition", "account", "qos", "constraint", "time", "mem")
    ] == [*("gpu", "a", "q", "h100&ib", "2-00:00:00", "0")]
    assert given["reservation"] == "r"


def test_environment_modules_and_containers():
    text = script(
        venv="some env",
        modules=["cuda/13", "nccl"],
        network_interface="ib0",
        environment={"NCCL_DEBUG": "a b", "NCCL_SOCKET_IFNAME": "eth1"},
    )
    assert f"export PATH='{Path.cwd()}/some env/bin':$PATH" in text
    assert "module load cuda/13 nccl" in text
    assert "export NCCL_DEBUG='a b'" in text
    assert "export NCCL_SOCKET_IFNAME=eth1" in text  # the user's own word
    text = script(container="image.sqsh", container_mounts=["/a:/b", "/c:/d"])
    assert "--container-image=image.sqsh --container-mounts=/a:/b,/c:/d" in text


def test_bash_judges_as_the_launchers_do():
    cases = [
        codes
        for count in (1, 2, 3)
        for codes in itertools.product((0, 1, 2, 75, 137), repeat=count)
    ]
    lines = ["".join(f"{code}\\n" for code in codes) for codes in cases]
    calls = "\n".join(
        f"printf '{line}' | judge {len(codes)}" for line, codes in zip(lines, cases, strict=True)
    )
    done = subprocess.run(
        ["bash", "-c", f"{JUDGE}\n{calls}\nprintf '0\\n' | judge 2\nprintf '' | judge 1"],
        capture_output=True,
        text=True,
        check=True,
    )
    *found, one_missing, all_missing = map(int, done.stdout.split())
    assert found == [judge(codes) for codes in cases]
    assert one_missing == all_missing == Exit.FAILED


SRUN = """#!/bin/bash
# As Slurm's: each task with its number, its output in its file.
while [[ $1 == --* ]]; do
  [[ $1 == --output=* ]] && output=${1#--output=}
  shift
done
for ((task = 0; task < SLURM_JOB_NUM_NODES; task++)); do
  file=${output/\\%N/node}
  SLURM_PROCID=$task "$@" > "${file/\\%t/$task}" 2>&1 &
done
wait
"""
SCONTROL = """#!/bin/bash
echo "$*" >> "$CALLS"
[[ $1 == show ]] && echo "JobId=7 JobState=$STATE Reason=None Requeue=1 Restarts=$RESTARTS BatchFlag=1"
[[ $1 == requeue ]] && kill -TERM $PPID
exit 0
"""


@pytest.fixture
def play(tmp_path):
    """play(command, state=..., starts=...) -> (exit code, requeued): the script with Slurm's
    commands played by others.
    """
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    calls = tmp_path / "calls"

    def play(command, *, state="RUNNING", start=0, most=2, nodes=2, now=None):
        calls.write_text("")
        cluster = SlurmCluster(
            nodes=2,
            least_nodes=1,
            log_dir=str(tmp_path / "logs"),
            retries={"most": most, "pause_seconds": 0.01},
        )
        path = tmp_path / "job.sbatch"
        path.write_text(make_script(Job(cluster, [command])))
        environment = {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(start),
            "SLURM_JOB_NUM_NODES": str(nodes),
            "RESTARTS": str(start if now is None else now),
            "CALLS": str(calls),
            "STATE": state,
        }
        done = subprocess.run(
            ["bash", str(path)], env=environment, capture_output=True, check=False, timeout=30
        )
        return done.returncode, "requeue 7" in calls.read_text()

    return play


def test_what_becomes_of_a_job_by_its_exit_codes(play, tmp_path):
    ended = -15  # by Slurm, once it is back in the queue
    assert play(["true"]) == (Exit.DONE, False)
    assert play(["bash", "-c", "exit $((2 - SLURM_PROCID))"]) == (Exit.MISTAKE, False)
    assert play(["bash", "-c", "exit 75"], start=1) == (ended, True)
    assert play(["bash", "-c", "exit 75"], start=1, state="CANCELLED") == (Exit.STOPPED, False)
    verdict = tmp_path / "logs" / "7" / "1" / "verdict"
    assert verdict.read_text() == "75\n"
    # One of two tasks failed; twice in a row are tried again, and not a third time.
    failing = ["bash", "-c", "exit $SLURM_PROCID"]
    assert [play(failing, start=number) for number in (2, 3, 4)] == [
        (ended, True),
        (ended, True),
        (Exit.FAILED, False),
    ]
    # A clean stop in between begins the count anew.
    assert play(["bash", "-c", "exit 75"], start=5) == (ended, True)
    assert play(failing, start=6) == (ended, True)


@pytest.mark.parametrize("code", [Exit.STOPPED, Exit.FAILED])
def test_a_script_that_outlives_its_start_leaves_the_next_one_alone(play, tmp_path, code):
    """Slurm has put the job back for a dead node, and its second start runs."""
    assert play(["bash", "-c", f"exit {int(code)}"], start=1, now=2) == (code, False)
    assert not (tmp_path / "logs" / "7" / "failures").exists()
    assert play(["bash", "-c", f"exit {int(code)}"], start=1, now=11) == (code, False)


def test_a_start_on_fewer_nodes_is_whole_with_fewer_exit_codes(play):
    assert play(["true"], nodes=1) == (Exit.DONE, False)
    # Of three nodes, the third's task was killed before it wrote its code.
    killed = ["bash", "-c", "[[ $SLURM_PROCID == 2 ]] && kill -KILL $PPID; exit 0"]
    assert play(killed, nodes=3, start=1) == (-15, True)


def test_fewer_nodes_may_do(capsys, tmp_path):
    text = script(nodes=4, least_nodes=2, gpus_per_node=8, cpus_per_process=6)
    found = options(text)
    # With a number of tasks, Slurm would take no more nodes than the least.
    assert (found["nodes"], "ntasks-per-node" in found) == ("2-4", False)
    per_node = int(found["cpus-per-task"])
    (step,) = (line for line in text.splitlines() if line.startswith("srun "))
    words = dict(word.lstrip("-").split("=", 1) for word in step.split() if "=" in word)
    assert words["ntasks"] == '"$tasks"'
    assert int(words["ntasks-per-node"]) * int(words["cpus-per-task"]) == per_node
    assert f"tasks=$((SLURM_JOB_NUM_NODES * {words['ntasks-per-node']}))" in text
    # Slurm's default stays its default: a step with a number of CPUs a task has no others.
    text = script(nodes=4, least_nodes=2, gpus_per_node=8)
    assert "cpus-per-task" not in text
    assert options(text)["mincpus"] == "8"
    assert "mincpus" not in script(nodes=4, least_nodes=2)
    path = tmp_path / "cluster.yaml"
    section = {"kind": "slurm", "nodes": 2, "least_nodes": 3}
    path.write_text(yaml.safe_dump({"cluster": section}))
    assert slurm.main(["submit", str(path), "--dry-run", "--", "true"]) == Exit.MISTAKE
    assert "cluster.least_nodes=3 is more than cluster.nodes=2" in capsys.readouterr().err
    path.write_text(yaml.safe_dump({"cluster": section | {"least_nodes": 1}}))
    assert slurm.main(["submit", str(path), "--dry-run", "--", "true"]) == Exit.DONE
    shown = capsys.readouterr().out
    assert "#SBATCH --nodes=1-2" in shown
    assert "tasks=$((SLURM_JOB_NUM_NODES * 1))" in shown


def test_words_of_the_command_arrive_as_they_are(play, tmp_path):
    play(["printf", "%s|", "a b", "$HOME", "x='1'", 'y="*"'])
    log = tmp_path / "logs" / "7" / "0" / "node.1.log"
    assert log.read_text() == "a b|$HOME|x='1'|y=\"*\"|"


def test_dry_run_shows_the_file_and_submits_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cluster.yaml").write_text(yaml.safe_dump({"cluster": {"kind": "slurm", "nodes": 2}}))
    assert slurm.main(["submit", "cluster.yaml", "--dry-run", "--", *COMMAND]) == Exit.DONE
    shown = capsys.readouterr().out
    assert "#SBATCH --nodes=2" in shown
    assert "$ sbatch --parsable logs/slurm/maxlm.sbatch" in shown
    assert "MAXLM_LAUNCHER='python launch/slurm.py submit cluster.yaml --'" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cluster.yaml"]
    Path("lines").write_text("maxlm train 'a b.yaml'\n\nmaxlm train c.yaml\n")
    array = ["submit", "cluster.yaml", "--dry-run", "--array", "lines", "--at-a-time", "1"]
    assert slurm.main(array) == Exit.DONE
    shown = capsys.readouterr().out
    assert "#SBATCH --array=0-1%1" in shown
    assert "  0) command=(maxlm train 'a b.yaml') ;;" in shown
    checked = subprocess.run(["bash", "-n"], input=shown.split("\n$ ")[0], text=True, check=False)
    assert checked.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "cluster.yaml", "--", "true"], "there is no sbatch on PATH"),
        (["submit", "cluster.yaml", "--dry-run", "--array", "empty"], "empty has no command"),
        (["submit", "cluster.yaml", "--dry-run", "--array", "gone"], "No such file"),
        (["submit", "gone.yaml", "--", "true"], "gone.yaml"),
        (["submit", "inside.yaml", "--", "true"], "log_dir=empty/logs: Not a directory; move away"),
        (["submit", "outside.yaml", "--", "true"], 'cluster.job_name="../x"'),
        (["status", "cluster.yaml", "12"], "has no job 12"),
    ],
)
def test_mistakes_are_told(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if arguments[1] == "inside.yaml":
        Path("sbatch").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    Path("cluster.yaml").write_text("cluster: {kind: slurm}\n")
    Path("inside.yaml").write_text("cluster: {kind: slurm, log_dir: empty/logs}\n")
    Path("outside.yaml").write_text("cluster: {kind: slurm, job_name: ../x}\n")
    Path("empty").write_text("\n")
    assert slurm.main(arguments) == Exit.MISTAKE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--array", "f", "--at-a-time", "-1"], ["--at-a-time", "2"]])
def test_at_a_time_is_a_count_for_arrays(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        slurm.main(["submit", "c.yaml", *arguments, *([] if "f" in arguments else ["--", "true"])])
    assert "--at-a-time" in capsys.readouterr().err.splitlines()[-1]


# --- what broke first -----------------------------------------------------------------------------

TRACE = 'Traceback (most recent call last):\n  File "x.py", line 1\n    f()\nKeyError: 3\nafter\n'


@pytest.mark.parametrize(
    ("text", "number", "line"),
    [
        ("fine\n" + TRACE, 5, "KeyError: 3"),
        ("fine\nmaxlm: train.batch_size=7 is odd\nmore\n", 2, "maxlm: train.batch_size=7 is odd"),
        ("E1126 10:00:00.1 12 client.cc] lost\n" + TRACE, 1, "E1126 10:00:00.1 12 client.cc] lost"),
        (
            "a\nslurmstepd: error: Detected 1 oom_kill event\n",
            2,
            "slurmstepd: error: Detected 1 oom_kill event",
        ),
        ("a\nFatal Python error: Aborted\n\nThread 1\n", 2, "Fatal Python error: Aborted"),
        ("a\nb\n\n", 2, "b"),
        ("", 0, ""),
    ],
)
def test_the_first_failing_line_of_a_log(text, number, line, tmp_path):
    path = tmp_path / "log"
    path.write_text(text)
    assert failing_line(path) == (number, line)


def write_start(folder, **tasks):
    """Write logs and exit codes; tasks ended in the order of their names here."""
    folder.mkdir(parents=True)
    now = time.time() - 100
    for count, (name, (code, text)) in enumerate(tasks.items()):
        task = name.removeprefix("t")
        (folder / f"n{task}.{task}.log").write_text(text)
        if code is not None:
            path = folder / f"{task}.exit"
            path.write_text(f"{code}\n")
            os.utime(path, (now + count, now + count))


def test_the_process_that_failed_first_is_the_one_that_is_shown(tmp_path):
    write_start(tmp_path / "a", t3=(75, ""), t1=(1, TRACE), t0=(1, "maxlm: connection lost\n"))
    failure = first_failure(tmp_path / "a")
    assert (failure.log.name, failure.number, failure.code) == ("n1.1.log", 4, 1)
    # One that was killed without a word is shown only where nobody has one.
    write_start(tmp_path / "b", t2=(137, ""), t0=(1, "maxlm: peer lost\n"), t1=(None, "step 3\n"))
    assert (
        str(first_failure(tmp_path / "b")) == "n0.0.log (exited with 1), line 1: maxlm: peer lost"
    )
    write_start(tmp_path / "c", t0=(None, "step 3\n"))
    assert str(first_failure(tmp_path / "c")) == "n0.0.log (was killed), line 1: step 3"
    write_start(tmp_path / "d", t0=(75, "E1126 x\n"))
    assert first_failure(tmp_path / "d") is None


def test_status_shows_starts_and_the_first_failing_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    path = tmp_path / "cluster.yaml"
    path.write_text(
        yaml.safe_dump({"cluster": {"kind": "slurm", "log_dir": str(tmp_path / "logs")}})
    )
    write_start(tmp_path / "logs" / "8" / "0", t0=(75, ""), t1=(75, ""))
    (tmp_path / "logs" / "8" / "0" / "verdict").write_text("75\n")
    write_start(tmp_path / "logs" / "8" / "1", t0=(1, TRACE))
    (tmp_path / "logs" / "8" / "1" / "verdict").write_text("1\n")
    write_start(tmp_path / "logs" / "9" / "0", t0=(None, "step 1\n"))
    (tmp_path / "logs" / "9" / "0" / "verdict").touch()  # it is being written
    for other in ("logs/9/notes", "logs/notes/a"):
        (tmp_path / other).mkdir(parents=True)
    assert slurm.main(["status", str(path)]) == Exit.FAILED
    shown = capsys.readouterr().out
    assert "start 0 on n0, n1: stopped and saved" in shown
    assert "start 1 on n0: failed\n    n0.0.log (exited with 1), line 4: KeyError: 3" in shown
    assert slurm.main(["status", str(path), "9"]) == Exit.DONE
    assert "start 0 on n0: runs" in capsys.readouterr().out


def test_an_array_is_not_submitted_while_it_is_in_the_queue(tmp_path, monkeypatch, capsys):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("sbatch", f'cp "$2" {tmp_path}/submitted; echo 4$(wc -l < {tmp_path}/logs/arrays.jsonl)'),
        ("squeue", f"cat {tmp_path}/queue"),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "arrays.jsonl").write_text('{"job": "39", "comm\n[]\n')  # killed
    (tmp_path / "queue").write_text("")
    (tmp_path / "cluster.yaml").write_text(
        f"cluster: {{kind: slurm, gpus_per_node: 1, log_dir: {tmp_path}/logs}}"
    )
    (tmp_path / "commands").write_text("maxlm train a.yaml\nmaxlm train b.yaml\n")
    command = ["submit", str(tmp_path / "cluster.yaml"), "--array", str(tmp_path / "commands")]
    assert slurm.main(command) == Exit.DONE
    assert "job 42;" in capsys.readouterr().out
    # The first of the two still runs, and so does a job of somebody else.
    (tmp_path / "queue").write_text("42_0\n7\n")
    assert slurm.main(command) == Exit.DONE
    shown = capsys.readouterr().out
    assert "maxlm train a.yaml: is in the queue as job 42_0" in shown
    assert "b.yaml" not in shown
    assert "#SBATCH --array=0-0\n" in (tmp_path / "submitted").read_text()
    assert "a.yaml" not in (tmp_path / "submitted").read_text()
    (tmp_path / "queue").write_text("42_0\n43_0\n")
    (tmp_path / "submitted").unlink()
    assert slurm.main(command) == Exit.DONE
    assert "all of it is in the queue" in capsys.readouterr().out
    assert not (tmp_path / "submitted").exists()
