"""`maxlm ladder run --launch`: what is not done goes to Slurm as an array."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from maxlm.cli import main
from maxlm.config import load_run
from maxlm.config.cluster.exit_codes import Exit
from tests.scaling.ladder.conftest import finish


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster's YAML, and an sbatch that keeps what it is given."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\ncp "$2" {tmp_path}/submitted\necho 42\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}")
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(f"cluster: {{kind: slurm, gpus_per_node: 1, log_dir: {tmp_path}/logs}}\n")
    return cluster


def test_rungs_that_are_not_done_are_submitted(
    ladder_file: Path, cluster: Path, tmp_path: Path, capfd
) -> None:
    finish(ladder_file, skip=("d32-5", "d64-20"))
    command = ["ladder", "run", str(ladder_file), "--launch", str(cluster)]
    assert main([*command, "--jobs", "1"]) == Exit.DONE
    shown = capfd.readouterr().out
    assert "14 of 16 rungs are done" in shown
    assert "job 42" in shown
    script = (tmp_path / "submitted").read_text()
    assert "#SBATCH --array=0-1%1\n" in script
    lines = (tmp_path / "ladder" / "rungs" / "commands").read_text().splitlines()
    runs = [load_run(shlex.split(line)[2]).config for line in lines]
    assert [Path(run.run_dir).name for run in runs] == ["d32-5", "d64-20"]
    # Another kind of cluster is told, and so is a ladder that is done.
    cluster.write_text("cluster: {kind: tpu}\n")
    assert main(command) == Exit.MISTAKE
    assert "this launcher is for slurm; use launch/tpu.py" in capfd.readouterr().err
    for name in ("d32-5", "d64-20"):
        (tmp_path / "ladder" / name).mkdir()
        steps = next(run for run in runs if run.run_dir.endswith(name)).train.num_steps
        values = {"step": steps, "val/python_stdlib/loss": 3.0}
        (tmp_path / "ladder" / name / "metrics.jsonl").write_text(json.dumps(values) + "\n")
    assert main(command) == Exit.DONE
    assert "16 of 16 rungs are done" in capfd.readouterr().out


def test_a_rung_waits_until_its_start_is_saved(
    ladder_file: Path, cluster: Path, tmp_path: Path, capfd
) -> None:
    ladder_file.write_text(f"{ladder_file.read_text()}branch: cooldown\n")
    command = ["ladder", "run", str(ladder_file), "--launch", str(cluster)]
    assert main(command) == Exit.DONE
    shown = capfd.readouterr().out
    assert "d64-20: not submitted; it goes on from" in shown
    lines = (tmp_path / "ladder" / "rungs" / "commands").read_text().splitlines()
    names = {Path(shlex.split(line)[2]).stem for line in lines}
    assert names == {"d32-5", "d64-5", "d128-5", "d256-5"}
    # Those are done, and what they saved is lost.
    finish(ladder_file, skip=tuple(f"d{d}-{n}" for d in (32, 64, 128, 256) for n in (20, 80, 320)))
    (tmp_path / "submitted").unlink()
    assert main(command) == Exit.FAILED
    assert "once d64-5 has saved it (one that is done" in capfd.readouterr().out
    assert not (tmp_path / "submitted").exists()
