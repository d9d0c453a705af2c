"""Every tensor of each family's largest published model has its place, and no other is asked for.

full_size.json is by scripts/make_hf_names.py: transformers' names and shapes.
"""

import itertools
import json
from pathlib import Path

import pytest

from maxlm.checkpoint.hf.families import FAMILIES
from maxlm.checkpoint.hf.families.family import parts_of
from maxlm.checkpoint.hf.published import model_of
from maxlm.models.decoder import Decoder

MODELS = json.loads((Path(__file__).parent / "full_size.json").read_text())


def test_every_family_is_there():
    kinds = {model["config"]["model_type"] for model in MODELS.values()}
    # Kimi K2's files are DeepSeek-V3's but for the name.
    assert kinds == FAMILIES.keys() - {"kimi_k2"}


@pytest.mark.parametrize("name", MODELS)
def test_its_tensors(name):
    config, listed = MODELS[name]["config"], MODELS[name]["tensors"]
    expected = {
        pattern.replace("*", "{}").format(*numbers): tuple(shape)
        for pattern, shape, ranges in listed
        for numbers in itertools.product(*(range(*one) for one in ranges))
    }
    assert len(expected) == MODELS[name]["count"]
    kind = "kimi_k2" if name == "Kimi K2" else config["model_type"]
    family = FAMILIES[kind]
    model, _ = model_of(family, {**config, "model_type": kind}, name)
    parts = parts_of(family, Decoder(model), model.vocab_size)
    found = {part.tensor: part.shape for part in parts}
    assert found.keys() == expected.keys()
    assert found == expected
