"""A stop in an evaluation: it is cut short, the step is saved, and the resumed run repeats it."""

import re

import pytest

from maxlm.config.cluster.exit_codes import Exit
from tests.train.conftest import curve, finish, read_metrics, start, train

# Trains as `maxlm train` does, and sends itself a signal before the second batch of an evaluation.
SIGNALLED = """
import os, signal, sys, time
from maxlm.cli import main
from maxlm.train import evaluate

device_batch, seen = evaluate.device_batch, []

def signalled(*arguments):
    seen.append(1)
    if len(seen) == {batch}:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.5)
    return device_batch(*arguments)

evaluate.device_batch = signalled
sys.exit(main())
"""


@pytest.mark.parametrize(("batch", "step"), [pytest.param(1, 10, marks=pytest.mark.slow), (3, 20)])
def test_a_stop_in_an_evaluation_saves_the_step_and_repeats_it(batch, step, write_run, tmp_path):
    sections = {"train": {"num_steps": 20, "eval_every": 10}, "checkpoint": {"every": 0}}
    whole = write_run("whole", **sections)
    if not (tmp_path / "whole").exists():
        train(whole)
    path = write_run("run", **sections)
    output = finish(start(path, launcher=["-c", SIGNALLED.format(batch=batch)]), Exit.STOPPED)
    assert "SIGUSR1: finishing this step, then saving and stopping" in output
    assert f"stopping after step {step}, with a checkpoint" in output
    assert f"the evaluation of step {step} was cut short" in output
    assert re.search(rf"stopped after step {step} of 20", output)
    assert (tmp_path / "run" / "checkpoints" / f"{step:08}").is_dir()
    assert "val/text/loss" not in read_metrics(tmp_path / "run")[step]
    train(path)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    for at in (10, 20):
        losses = [read_metrics(tmp_path / one)[at]["val/text/loss"] for one in ("run", "whole")]
        assert losses[0] == losses[1]
