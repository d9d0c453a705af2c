"""Every tensor of each family's largest published model has its place, and no other is asked for.

full_size.json is by scripts/make_hf_names.py: transformers' names and shapes.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from maxlm.checkpoint.hf.families import FAMILIES
from maxlm.checkpoint.hf.families.family import parts_of
from maxlm.checkpoint.hf.published import Published, model_of
from maxlm.checkpoint.hf.tensors.read_files import StoredTensor
from maxlm.models.decoder import Decoder

MODELS = json.loads((Path(__file__).parent / "full_size.json").read_text())


def test_every_family_is_there():
    kinds = {model["config"]["model_type"] for model in MODELS.values()}
    # Kimi K2's files are DeepSeek-V3's but for the name.
    assert kinds == FAMILIES.keys() - {"kimi_k2"}


def tensors_of(name):
    """Return the shapes of a model's tensors by their names."""
    expected = {
        pattern.replace("*", "{}").format(*numbers): tuple(shape)
        for pattern, shape, ranges in MODELS[name]["tensors"]
        for numbers in itertools.product(*(range(*one) for one in ranges))
    }
    assert len(expected) == MODELS[name]["count"]
    return expected


@pytest.mark.parametrize("name", MODELS)
def test_its_tensors(name):
    config, expected = MODELS[name]["config"], tensors_of(name)
    kind = "kimi_k2" if name == "Kimi K2" else config["model_type"]
    family = FAMILIES[kind]
    model, _ = model_of(family, {**config, "model_type": kind}, name)
    parts = parts_of(family, Decoder(model), model.vocab_size)
    found = {part.tensor: part.shape for part in parts}
    assert found.keys() == expected.keys()
    assert found == expected


def test_the_module_behind_the_layers_of_deepseek_v3():
    """Which transformers leaves out: its names are those of the published description of the weights,
    layer 61 like those before it and what a module has besides.
    """
    tensors = tensors_of("DeepSeek-V3")
    before, own = "model.layers.60.", "model.layers.61."
    tensors |= {
        own + name.removeprefix(before): shape
        for name, shape in tensors.items()
        if name.startswith(before)
    }
    tensors |= {own + f"{name}.weight": (7168,) for name in ("enorm", "hnorm", "shared_head.norm")}
    tensors[own + "eh_proj.weight"] = (7168, 2 * 7168)
    config = {**MODELS["DeepSeek-V3"]["config"], "num_nextn_predict_layers": 1}
    family = FAMILIES["deepseek_v3"]
    model, understood = model_of(family, config, "DeepSeek-V3")
    parts = parts_of(family, Decoder(model), model.vocab_size)
    assert {part.tensor: part.shape for part in parts} == tensors
    # Copies of embedding and head, which are published beside them, say nothing.
    copies = ("embed_tokens.weight", "shared_head.head.weight")
    tensors |= {own + name: (129280, 7168) for name in copies}
    files = {
        name: StoredTensor(Path(), np.dtype("float32"), shape, 0) for name, shape in tensors.items()
    }
    about = understood.settings, model.vocab_size, files, (), ()
    published = Published(Path(), config, family, model, *about)
    assert len(published.parts(Decoder(model))) == len(parts)
