"""A prepared text, and the base of ladders on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from maxlm.cli import main
from tests.train.conftest import make_run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared text and `base.yaml`, a run on eight devices."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "raw").mkdir()
    for number in range(20):
        text = " ".join(f"word{(number * k) % 37}" for k in range(150))
        (folder / "raw" / f"{number}.txt").write_text(text)
    base = make_run(folder, folder / "unused")
    base["mesh"] = {"fsdp": 8}
    base["schedule"] = {"warmup_steps": 2}
    base["train"] |= {"eval_every": 5, "batch_size": 8}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    assert main(["prepare", str(folder / "base.yaml")]) == 0
    return folder
