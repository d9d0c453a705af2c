"""Budgets that branch off one run at a constant rate: the same bits as runs in one go, whatever
happens on the way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from maxlm.checkpoint import CheckpointReader
from maxlm.cli import main
from maxlm.config.errors import ConfigError
from maxlm.config.reading.loader import load_ladder
from maxlm.config.schema import RunConfig
from maxlm.scaling.ladder.results import read_results
from maxlm.scaling.ladder.rung import Rung
from maxlm.scaling.ladder.rungs import build_rungs
from maxlm.train.loop import train
from maxlm.train.setup import build_program
from tests.train.conftest import ROOT, read_metrics

TOKENS_PER_STEP = 8 * 32
STEPS = (10, 20, 30)


def write_ladder(data: Path, run_dir: Path, steps: tuple[float, ...] = STEPS, **more: Any) -> Path:
    ladder = {
        "base": str(data / "base.yaml"),
        "run_dir": str(run_dir),
        "sizes": {"kind": "list", "sizes": [{"name": "only", "settings": {}}]},
        "budgets": {"kind": "tokens", "tokens": [float(n * TOKENS_PER_STEP) for n in steps]},
        "branch": "cooldown",
        **more,
    }
    path = run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(ladder))
    return path


def in_one_go(rung: Rung, run_dir: Path) -> RunConfig:
    """Return a rung's run from its first step on, without checkpoints on the way."""
    config = rung.config
    return config.model_copy(
        update={
            "run_dir": str(run_dir),
            "train": config.train.model_copy(update={"init_from": None}),
            "checkpoint": config.checkpoint.model_copy(update={"at_steps": (), "every": 0}),
        }
    )


def last_state(config: RunConfig) -> list[np.ndarray]:
    reader = CheckpointReader(Path(config.run_dir) / "checkpoints")
    restored = reader.restore(build_program(config).state)
    assert restored is not None
    assert restored.step == config.train.num_steps
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored.state)]


def test_a_branch_has_the_bits_of_the_run_in_one_go(prepared: Path, tmp_path: Path):
    rungs = build_rungs(load_ladder(write_ladder(prepared, tmp_path / "ladder")))
    assert [rung.start for rung in rungs] == [0, 8, 16]
    for rung in rungs[:2]:
        train(rung.config, command="")
    # What the next budget starts from is kept, though newer ones have pushed it out.
    kept = CheckpointReader(Path(rungs[0].config.run_dir) / "checkpoints").steps()
    assert kept == [10, 8, 5][: len(kept)]
    assert 8 in kept
    whole = in_one_go(rungs[1], tmp_path / "whole")
    train(whole, command="")
    found, wanted = last_state(rungs[1].config), last_state(whole)
    assert len(found) == len(wanted) > 30
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    branch, uninterrupted = (read_metrics(run.run_dir) for run in (rungs[1].config, whole))
    exact = ("train/loss_hex", "data/token_hash", "train/flops")
    for step in range(9, 21):
        assert [branch[step][key] for key in exact] == [uninterrupted[step][key] for key in exact]
    # The rung's curve is that of the whole run: the first steps are those of the rung before.
    result = read_results(load_ladder(tmp_path / "ladder.yaml"), rungs)[1]
    name = "val/text/loss"
    assert result.curve == tuple(
        (step, values[name]) for step, values in uninterrupted.items() if name in values
    )
    assert (result.rung.tokens, result.rung.own_flops / result.rung.flops) == (5120, 12 / 20)


def test_only_budgets_that_share_their_first_steps_can_branch(prepared: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="would cool down from step 8, where the budget before"):
        build_rungs(load_ladder(write_ladder(prepared, tmp_path / "near", (10, 10.4))))
    rule = {"learning_rate": {"kind": "power_law", "tokens": -0.1}}
    with pytest.raises(ConfigError, match=r"use transfer.learning_rate.tokens=0, or remove branch"):
        load_ladder(write_ladder(prepared, tmp_path / "rates", transfer=rule))
    warm = {"warmup_fraction": 0.9}
    with pytest.raises(ConfigError, match=r"use transfer.warmup_fraction=0.4"):
        load_ladder(write_ladder(prepared, tmp_path / "warm", transfer=warm))


def test_a_rung_without_its_start_is_named(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write_ladder(prepared, tmp_path / "ladder")
    for rung in build_rungs(load_ladder(path))[:1]:  # done, its checkpoints deleted
        folder = Path(rung.config.run_dir)
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 10, "val/text/loss": 3.0}))
    assert main(["ladder", "run", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "only-5.12e03: not begun; it goes on from" in shown
    assert "00000008, which is not there" in shown


def test_a_step_stands_once_in_a_curve_when_budgets_are_added(prepared: Path, tmp_path: Path):
    ladder = load_ladder(write_ladder(prepared, tmp_path / "ladder"))
    rungs = build_rungs(ladder)
    # The second was trained from step 0, before there was the first.
    for rung, steps in ((rungs[0], (4, 8, 10)), (rungs[1], (4, 8, 12, 20))):
        folder = Path(rung.config.run_dir)
        folder.mkdir(parents=True)
        lines = [json.dumps({"step": step, "val/text/loss": 3.0}) for step in steps]
        (folder / "metrics.jsonl").write_text("\n".join(lines))
    curve = read_results(ladder, rungs)[1].curve
    assert [step for step, _ in curve] == [4, 8, 12, 20]


def ladder_process(path: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "maxlm", "ladder", "run", str(path), *options]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_killed_ladder_gives_the_table_of_one_that_was_not(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole = write_ladder(prepared, tmp_path / "whole")
    assert ladder_process(whole).wait() == 0
    killed = write_ladder(prepared, tmp_path / "killed")
    process = ladder_process(killed, "--jobs", "2")
    first, *others = build_rungs(load_ladder(killed))
    begun = Path(others[0].config.run_dir) / "metrics.jsonl"
    while process.poll() is None and not begun.exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Two in flight: the second starts while the first still cools down.
    again = ladder_process(killed, "--jobs", "2")
    assert again.wait() == 0
    tables = []
    for path in (whole, killed):
        capsys.readouterr()
        assert main(["ladder", "status", str(path)]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert tables[0].count("loss") == 3
    for rung in (first, *others):
        metrics = [read_metrics(tmp_path / run / rung.name) for run in ("whole", "killed")]
        keys = ("train/loss_hex", "data/token_hash")
        assert [[v[k] for k in keys] for v in metrics[0].values()] == [
            [v[k] for k in keys] for v in metrics[1].values()
        ]
