"""A tiny trained run: the fixtures of whole runs."""

import pytest
import yaml

from tests.train.conftest import make_run, refuse, tiny_data, train, write_run

__all__ = ["refuse", "tiny_data", "write_run"]


@pytest.fixture(scope="session")
def trained(tiny_data, tmp_path_factory):
    """A run directory with checkpoints of steps 2 and 3, of a model with learned positions, trained
    on two devices.
    """
    folder = tmp_path_factory.mktemp("trained")
    config = make_run(tiny_data, folder / "run")
    config["model"]["position"] = {"kind": "learned", "max_length": 128}
    config["train"] |= {"num_steps": 3, "eval_every": 0}
    config["schedule"] = {}
    config["checkpoint"] = {"every": 2}
    config["train"]["microbatches"] = 2
    config["runtime"]["device_count"] = 2
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    train(folder / "run.yaml")
    return folder / "run"
