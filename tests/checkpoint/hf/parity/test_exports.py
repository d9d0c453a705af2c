"""What maxlm writes is read by transformers and computes the same.

Needs transformers: here, or for the interpreter that MAXLM_PARITY_PYTHON names.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maxlm.checkpoint.hf.load import load
from maxlm.checkpoint.hf.published import open_published
from maxlm.checkpoint.hf.save import plan_export, write_export
from maxlm.models.decoder import Decoder
from maxlm.sharding.parameters import named_parameters
from tests.checkpoint.hf.whole_logits import one_device

FIXTURES = Path(__file__).parents[1] / "fixtures"
PYTHON = os.environ.get("MAXLM_PARITY_PYTHON")
if not PYTHON and importlib.util.find_spec("transformers"):
    PYTHON = sys.executable


def export(folder, target):
    """Write a fixture with the fewest keys: nothing of its own config.json is handed on."""
    published = open_published(folder)
    decoder = load(published, Decoder(published.model), one_device())
    values = {path: np.asarray(value[...]) for path, value in named_parameters(decoder)}
    plan = plan_export(
        Decoder,
        published.model,
        vocab_size=published.vocab_size,
        about={},
        family=published.family.name,
    )
    write_export(
        plan,
        target,
        lambda paths: {path: values[path] for path in paths},
        dtype=np.dtype(np.float32),
        files=[],
        advance=lambda elements: None,
        shard_bytes=60_000,
    )


@pytest.mark.skipif(not PYTHON, reason="needs transformers: pip install 'maxlm[parity]'")
def test_transformers_computes_the_same_with_every_export(tmp_path):
    names = sorted(path.name for path in FIXTURES.iterdir())
    (tmp_path / "out").mkdir()
    for name in names:
        export(FIXTURES / name, tmp_path / "out" / name)
    ran = subprocess.run(
        [
            PYTHON,
            Path(__file__).parent / "with_transformers.py",
            tmp_path / "out",
            FIXTURES,
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [one["name"] for one in found] == names
    assert [one for one in found if one["amiss"] or one["difference"] > 1e-6] == []
