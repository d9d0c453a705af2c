"""Published modules for further tokens: their names, read and written, left out, or not there."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maxlm.checkpoint.hf.load import load
from maxlm.checkpoint.hf.published import open_published
from maxlm.checkpoint.hf.save import plan_export, write_export
from maxlm.config.errors import UserError
from maxlm.config.model import ModelConfig
from maxlm.models.decoder import Decoder
from maxlm.sharding.parameters import initialise, named_parameters
from tests.checkpoint.hf.whole_logits import one_device

FIXTURE = Path(__file__).parent / "fixtures/deepseek_v3"
KEY = "num_nextn_predict_layers"


def as_arrays(decoder):
    return {path: np.asarray(value[...]) for path, value in named_parameters(decoder)}


@pytest.fixture(scope="module")
def model():
    """The fixture's with two modules: behind layers 0 to L - 1, layers L and L + 1."""
    settings = open_published(FIXTURE).settings
    return ModelConfig.model_validate({**settings, "mtp": {"depth": 2}})


@pytest.fixture(scope="module")
def decoder(model):
    return initialise(Decoder(model), 0, one_device())


@pytest.fixture(scope="module")
def folder(model, decoder, tmp_path_factory):
    """What is exported, with the copies of embedding and head that published modules have."""
    out = tmp_path_factory.mktemp("modules") / "out"
    about, parameters = open_published(FIXTURE).config, as_arrays(decoder)
    export = plan_export(
        Decoder, model, vocab_size=model.vocab_size, about=about, family="deepseek_v3"
    )
    write_export(
        export,
        out,
        lambda paths: {path: parameters[path] for path in paths},
        dtype=np.dtype(np.float32),
        files=[],
        advance=lambda elements: None,
    )
    copies = {
        f"model.layers.{model.num_layers}.embed_tokens.weight": parameters["embedding/tokens"],
        f"model.layers.{model.num_layers}.shared_head.head.weight": parameters["head/output"].T,
    }
    file = out / "model.safetensors"
    save_file({**load_file(file), **{name: x.copy() for name, x in copies.items()}}, file)
    return out


def test_names_and_halves_are_the_published_ones(model, decoder, folder):
    assert json.loads((folder / "config.json").read_text())[KEY] == 2
    written, parameters = load_file(folder / "model.safetensors"), as_arrays(decoder)
    last = {
        name.removeprefix(f"model.layers.{model.num_layers - 1}.")
        for name in written
        if f"layers.{model.num_layers - 1}." in name
    }
    own = {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"}
    second = f"model.layers.{model.num_layers + 1}."
    assert {n.removeprefix(second) for n in written if n.startswith(second)} == last | own
    # a column for each number of [embedding; hidden state]
    project = written[f"model.layers.{model.num_layers}.eh_proj.weight"]
    assert project.shape == (model.embed_dim, 2 * model.embed_dim)
    np.testing.assert_array_equal(project.T, parameters["mtp/0/project"][0])


def test_they_are_read_bit_for_bit(model, decoder, folder):
    published = open_published(folder)
    assert published.model == model
    read = as_arrays(load(published, Decoder(model), one_device()))
    for path, value in as_arrays(decoder).items():
        assert read[path].tobytes() == value.tobytes(), path


def test_a_model_without_modules_does_without_theirs(model, decoder, folder):
    published, plain = open_published(folder), model.model_copy(update={"mtp": None})
    read = as_arrays(load(published, Decoder(plain), one_device()))
    assert read.keys() == {path for path in as_arrays(decoder) if not path.startswith("mtp/")}
    strange = {
        **published.tensors,
        "model.layers.9.enorm.weight": published.tensors["model.norm.weight"],
    }
    with pytest.raises(UserError, match=r"not known: model\.layers\.9\.enorm\.weight"):
        dataclasses.replace(published, tensors=strange).parts(Decoder(plain))


def test_modules_that_were_left_out_are_none(model):
    """As transformers saves them: counted in config.json, and not there."""
    published = open_published(FIXTURE)
    assert json.loads((FIXTURE / "config.json").read_text())[KEY] == 1
    assert published.model.mtp is None
    assert any(f"{KEY}=1" in note for note in published.notes)


def test_one_of_two_is_missing(model, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "part")
    file, gone = tmp_path / "part/model.safetensors", f"layers.{model.num_layers + 1}."
    save_file({name: x for name, x in load_file(file).items() if gone not in name}, file)
    with pytest.raises(UserError, match=r"missing: model\.layers\.\d+\.eh_proj\.weight"):
        open_published(tmp_path / "part").parts(Decoder(model))
