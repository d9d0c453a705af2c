"""A whole run whose losses jump at its resume: nothing is compiled, a step is what the test says."""

import jax
import numpy as np
import pytest

from maxlm.config.errors import RunFailedError
from maxlm.config.schema import RunConfig
from maxlm.metrics.history.events import read_events
from maxlm.train import loop
from maxlm.train.loss.gradients import Sums
from maxlm.train.setup import CompiledStep
from maxlm.train.step import StepMetrics
from tests.train.conftest import make_run, read_metrics


def steps_of(loss):
    """Return what stands for `compile_step`: steps that change nothing and report a loss."""

    def run(state, batch):
        value, zero, one = np.float32(loss(int(state.step))), np.int32(0), np.float32(1)
        sums = Sums(value, one, {"nats": value, "target_bytes": one}, state.token_hash, [], [])
        metrics = StepMetrics(sums, {}, one, one, one, one, state.token_hash, zero, zero)
        return state._replace(step=state.step + 1), metrics

    return lambda config, program: CompiledStep(run, 0.0, 0)


@pytest.fixture
def go(tiny_data, tmp_path, monkeypatch):
    """go(num_steps, level, ...) trains in this process to a step, with losses around a level."""
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {})

    def train(num_steps, level, **checkpoint):
        settings = make_run(tiny_data, tmp_path / "run")
        settings["train"] |= {
            "num_steps": num_steps,
            "eval_every": 0,
            "batch_size": jax.device_count(),
        }
        settings["schedule"] = {"kind": "constant", "warmup_steps": 0}
        settings["checkpoint"] = {"every": 100} | checkpoint
        wave = steps_of(lambda step: level + 0.01 * np.sin(step * 7.1))
        monkeypatch.setattr(loop, "compile_step", wave)
        assert loop.train(RunConfig.model_validate(settings), command="again")

    return train


def test_a_jump_at_the_resume_stops_the_run_and_saves_nothing(go, tmp_path):
    saved = tmp_path / "run/checkpoints"
    go(100, 3.0)
    with pytest.raises(
        RunFailedError, match=r"from step 100 is 3\.\d+, that of the 32 before it [23]\.\d+"
    ):
        go(104, 3.5)  # four losses: judged before they are saved
    with pytest.raises(RunFailedError, match="the first 8 losses"):
        go(120, 3.5)
    assert [path.name for path in saved.iterdir()] == ["00000100"]
    go(120, 3.5, loss_jump="warn")
    assert read_metrics(tmp_path / "run")[120]["step"] == 120
    go(130, 3.5)  # goes on from where it was: no jump in the record, whose window has both levels
    kinds = [one.kind for one in read_events(tmp_path / "run")[0]]
    assert [kind for kind in kinds if kind in ("resume", "resume_confirmed", "loss_jump")] == [
        *("resume", "loss_jump") * 3,
        *("resume", "resume_confirmed"),
    ]
    marks = [line.get("run/resumed_from") for line in read_metrics(tmp_path / "run").values()]
    assert [(step, mark) for step, mark in enumerate(marks, 1) if mark] == [(101, 100), (121, 120)]
