"""The line that starts a run again."""

import argparse
import logging
import shlex

import pytest

from maxlm import runtime
from maxlm.train import command


@pytest.mark.parametrize("launcher", ["", "python 'my launch/local.py' -n 2 --"])
def test_the_line_to_resume_with_can_be_pasted(write_run, monkeypatch, launcher):
    started = {}
    monkeypatch.setattr(runtime, "start", lambda settings: None)
    monkeypatch.setattr(command, "train", lambda config, **options: started.update(options) or True)
    if launcher:
        monkeypatch.setenv("MAXLM_LAUNCHER", launcher)
    handlers = logging.getLogger().handlers[:]
    path = str(write_run("a name"))
    overrides = ['run_dir="runs/x #1"', "train.remat={query: save}"]
    try:
        assert command.run(argparse.Namespace(config=path, overrides=overrides)) == 0
    finally:
        logging.getLogger().handlers[:] = handlers
    assert shlex.split(started["command"]) == [
        *shlex.split(launcher),
        "maxlm",
        "train",
        path,
        *overrides,
    ]
