"""`maxlm doctor` with one process and with two, and the start of training where hosts differ."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from maxlm import runtime
from maxlm.cli import main
from maxlm.config.cluster.exit_codes import Exit
from tests.train.conftest import make_run

ROOT = Path(__file__).parents[2]
LAUNCHER = [sys.executable, str(ROOT / "launch" / "local.py"), "-n", "2", "--"]


@pytest.fixture
def run_file(tmp_path):
    """A run whose data is not there: nothing here reads it."""
    config = make_run(tmp_path, tmp_path / "some" / "run")
    config["mesh"] = {"data": 2, "fsdp": 4}
    config["train"]["batch_size"] = 8
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_every_check_has_a_line_and_nothing_is_left(run_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "start", lambda settings: None)  # JAX runs here already
    assert main(["doctor", str(run_file)]) == Exit.DONE
    lines = capsys.readouterr().out.splitlines()
    checks = [line[9:22].strip() for line in lines]
    assert checks == [
        *("devices", "versions", "memory", "compile cache", "folder", "space", "matmul"),
        *("link data", "link fsdp"),
    ]
    assert all(line.startswith(("ok ", "warning ")) for line in lines)
    assert not (tmp_path / "some").exists()
    # Without a run there is no folder, and one axis of all devices.
    file = tmp_path / "found.json"
    assert main(["doctor", "--json", str(file)]) == Exit.DONE
    found = json.loads(file.read_text())
    checks = [one["check"] for one in found["findings"]]
    assert checks == ["devices", "versions", "memory", "compile cache", "matmul", "link data"]
    assert len(found["findings"][4]["values"]["devices"]) == 8


def test_an_elastic_run_is_looked_at_as_it_would_be_fitted(run_file, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "start", lambda settings: None)
    overrides = ["mesh.data=1", "mesh.elastic=batch", "train.microbatches=2"]
    assert main(["doctor", str(run_file), *overrides]) == Exit.DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if " mesh " in line[:22]] == [
        "warning  mesh          8 devices, and the mesh was written for 4: mesh.data 1 -> 2, "
        "train.microbatches 2 -> 1; the batch stays 8 sequences"
    ]
    assert any("link data" in line for line in lines)
    # Without it the mesh is refused.
    assert main(["doctor", str(run_file), "mesh.data=1"]) == Exit.MISTAKE


def test_a_problem_is_the_exit_code(run_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "start", lambda settings: None)
    (tmp_path / "some").write_text("a file in the way")
    assert main(["doctor", str(run_file), "mesh.fsdp=-1"]) == Exit.MISTAKE
    assert "PROBLEM  folder" in capsys.readouterr().out
    assert main(["doctor", str(run_file), "mesh.fsdp=3"]) == Exit.MISTAKE


HANGS = """
import sys, time
from maxlm.cli import main
from maxlm.doctor import command
command.LIMIT_SECONDS = 20.0  # the others need less, on a busy machine too
def a_collective_that_hangs(mesh):
    time.sleep(600)
command.speed.check_links = a_collective_that_hangs
sys.exit(main(["doctor", "--json", sys.argv[1]]))
"""


def test_a_check_that_hangs_is_named_and_ends_it(tmp_path):
    command = [sys.executable, "-c", HANGS, str(tmp_path / "found.json")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT
    )
    assert done.returncode == Exit.FAILED, done.stderr
    assert "ok       matmul" in done.stdout
    assert "the check of links has taken longer than 20 s: ended, with the stacks" in done.stderr
    assert "a_collective_that_hangs" in done.stderr
    assert not list(tmp_path.iterdir())


def launch(script, **settings):
    """Run a bash script in two processes; it knows its place."""
    command = [*LAUNCHER, "bash", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_two_processes_that_do_not_see_one_folder(run_file, tmp_path):
    maxlm = f"{sys.executable} -m maxlm"
    options = f"mesh.fsdp=2 runtime.device_count=2 --json {tmp_path}/found.json"
    done = launch(f"exec {maxlm} doctor {run_file} run_dir={tmp_path}/$MAXLM_PROCESS_ID {options}")
    assert done.returncode == Exit.MISTAKE, done.stderr
    text = (tmp_path / "found.json").read_text()
    found = {one["check"]: one for one in json.loads(text)["findings"]}
    assert found["folder"]["level"] == "problem"
    assert "is not one folder for all hosts" in found["folder"]["text"]
    assert found["devices"]["values"] == {"devices": {"cpu": 4}, "processes": 2, "hosts": 1}
    assert found["clocks"]["level"] == "ok"
    assert found["link fsdp"]["values"]["bytes_per_second"] > 0
    assert not (tmp_path / "0").exists()


def test_training_is_refused_where_hosts_have_other_code(run_file, tmp_path):
    shutil.copytree(ROOT / "maxlm", tmp_path / "other" / "maxlm")
    with (tmp_path / "other" / "maxlm" / "files.py").open("a") as file:
        file.write("# changed\n")
    script = (
        f"cd {tmp_path}; test $MAXLM_PROCESS_ID = 0 && export PYTHONPATH={ROOT}:$PYTHONPATH || "
        f"export PYTHONPATH={tmp_path}/other:{ROOT}; "
        f"exec {sys.executable} -m maxlm train {run_file} runtime.device_count=4"
    )
    done = launch(script)
    assert done.returncode == Exit.MISTAKE
    assert "maxlm: code of maxlm" in done.stderr
    assert "install the same lock file and the same code on all hosts" in done.stderr
    assert not (tmp_path / "some").exists()
