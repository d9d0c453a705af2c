"""Runs of the copied package, from YAML files."""

import math
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

import maxlm
from maxlm import runtime
from maxlm.cli import main
from maxlm.config import load_run
from maxlm.config.errors import ConfigError
from maxlm.data.loader import device_batch
from maxlm.sharding.mesh import batch_sharding
from maxlm.train.setup import build_program, compile_step, open_datasets
from maxlm.train.state import create_state
from tests.train.conftest import curve, read_metrics, tiny_data, write_run

__all__ = ["tiny_data", "write_run"]

AVERAGE = {"kind": "moving_average", "hidden_dim": 24}
SIDE_BY_SIDE = {
    "kind": "parallel",
    "mixers": [{"kind": "attention", "num_heads": 2, "head_dim": 8}, AVERAGE],
}
CENTRED = {"kind": "centred", "hidden_dim": 48, "penalty": 0.1}
LION, AFTER_NEXT = (
    {"kind": "lion", "learning_rate": 1e-3},
    {"kind": "after_next", "window": 7, "ignored": 1},
)
KINDS = {
    "mixer": {"mixer": AVERAGE},
    "parallel": {"mixer": SIDE_BY_SIDE},
    "ffn": {"ffn": CENTRED},
    "objective": {"objective": AFTER_NEXT},
    "optimizer": {"optimizer": LION},
    "kernel": {"kernel": "dense"},
    "all": {
        "mixer": SIDE_BY_SIDE,
        "ffn": CENTRED,
        "objective": AFTER_NEXT,
        "optimizer": LION,
        "kernel": "dense",
    },
}


def pytest_collection():
    assert Path(maxlm.__file__).is_relative_to(os.environ["MAXLM_SEAMS"]), (
        "the copy is to be tested"
    )


@pytest.fixture
def load(write_run):
    """load(kind, overrides...) -> the config of a small run that uses the kind."""

    def load(kind, *overrides):
        return load_run(yaml_of(write_run, kind), overrides).config

    return load


@pytest.fixture
def refused(write_run):
    """refused(kind, overrides...) -> what a user reads who sets this."""

    def refused(kind, *overrides):
        with pytest.raises(ConfigError) as caught:
            load_run(yaml_of(write_run, kind), overrides)
        return str(caught.value)

    return refused


@pytest.fixture
def train(write_run, tmp_path, monkeypatch):
    """train(kind, overrides...) -> (curve, metrics) of a run in this process, on all devices."""
    monkeypatch.setattr(runtime, "start", lambda settings: None)  # JAX runs here already

    def train(kind, *overrides):
        assert main(["train", str(yaml_of(write_run, kind)), *overrides]) == 0
        return curve(tmp_path / kind), read_metrics(tmp_path / kind)

    return train


def yaml_of(write_run, kind):
    """Write a run that uses the kind; return the path of its YAML file."""
    train = {"num_steps": 3, "batch_size": 8, "eval_every": 0}
    path = write_run(kind, train=train, schedule={"kind": "constant", "warmup_steps": 0})
    settings, used = yaml.safe_load(path.read_text()), KINDS[kind]
    settings["model"]["block"] |= {name: used[name] for name in ("mixer", "ffn") if name in used}
    settings |= {name: used[name] for name in ("objective", "optimizer") if name in used}
    settings["runtime"] |= {"kernels": {"attention": used["kernel"]}} if "kernel" in used else {}
    path.write_text(yaml.safe_dump(settings))
    return path


def losses(config, **mesh):
    """Return the objective of three steps on the devices of a mesh, and the state after them."""
    mesh = config.mesh.model_copy(update={"fsdp": 1, **mesh})
    config = config.model_copy(update={"mesh": mesh})
    program = build_program(config, jax.devices()[: math.prod(mesh.sizes.values())])
    step = compile_step(config, program).run
    data = open_datasets(config).train
    state = create_state(program.state, program.optimizer, program.mesh, seed=0)
    found = []
    for number in range(3):
        batch = device_batch(data, number * config.train.batch_size, batch_sharding(program.mesh))
        state, metrics = step(state, batch)
        found.append(float(metrics.sums.objective))
    return np.asarray(found), jax.device_get(state)
