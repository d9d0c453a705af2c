"""The tiny prepared text of the trainer's tests, and a run over a copy of it."""

import json
import shutil
from typing import NamedTuple

import jax
import pytest

from maxlm.config.schema import RunConfig
from maxlm.train.resume.record import Circumstances, record_of
from maxlm.train.setup import build_program, open_datasets
from maxlm.train.state import Consumed
from tests.train.conftest import make_run

STEP, ROWS = 10, 40


class Saved(NamedTuple):
    """A run, what it reads, and the record of its checkpoint."""

    config: RunConfig
    circumstances: Circumstances
    record: dict
    settings: dict

    def now(self):
        """Look again at what there is."""
        program = build_program(self.config, jax.devices()[:1])
        return Circumstances.of(self.config, program, open_datasets(self.config))


@pytest.fixture
def saved(tiny_data, tmp_path):
    """A run over a copy of the text, in tmp_path / "text", with a checkpoint."""
    shutil.copytree(tiny_data / "text", tmp_path / "text")
    settings = make_run(tiny_data, tmp_path / "run")
    settings["data"]["sources"]["text"]["path"] = str(tmp_path / "text")
    config = RunConfig.model_validate(settings)
    program = build_program(config, jax.devices()[:1])
    circumstances = Circumstances.of(config, program, open_datasets(config))
    consumed = Consumed(ROWS, ROWS * 32, 0)
    record = record_of(config, program, circumstances.datasets, consumed) | {"step": STEP}
    record |= circumstances.record()
    return Saved(config, circumstances, json.loads(json.dumps(record)), settings)
