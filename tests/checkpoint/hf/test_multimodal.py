"""The text models of models of text and images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maxlm.checkpoint.hf.families import FAMILIES
from maxlm.checkpoint.hf.families.multimodal import MULTIMODAL, text_config
from maxlm.checkpoint.hf.load import load
from maxlm.checkpoint.hf.published import model_of, open_published
from maxlm.config.errors import UserError
from maxlm.models.decoder import Decoder
from tests.checkpoint.hf.whole_logits import logits_of, one_device

FOLDER = Path(__file__).parent / "multimodal"
NAMES = sorted(path.name for path in FOLDER.iterdir())
FOUR_BILLION = {
    "model_type": "gemma3",
    "eos_token_id": [1, 106],
    "image_token_index": 262_144,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152},
}
"""What config.json of Gemma 3 4B says: all else is the class's default."""


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
    published, expected = (
        open_text(FOLDER / name),
        load_file(FOLDER / name / "expected.safetensors"),
    )
    decoder = load(published, Decoder(published.model), one_device())
    tokens = expected["tokens_long"][None]
    found, wanted = logits_of(decoder, tokens, np.ones_like(tokens))[0], expected["logits_long"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert published.ends == (2,)


def open_text(folder):
    return open_published(folder, text_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_left_out_when_that_is_asked_for(name):
    with pytest.raises(
        UserError, match=r"text and images.*maxlm import --text-only, or train\.init"
    ):
        open_published(FOLDER / name)
    tensors = load_file(FOLDER / name / "model.safetensors")
    others = [key for key in tensors if not key.startswith("language_model.")]
    note = open_text(FOLDER / name).notes[0]
    assert note.startswith("text alone: skipped multi_modal_projector.* (")
    assert sum(int(part.split(" ")[0]) for part in note.split("(")[1:]) == len(others) > 10


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_", "model.vision_"),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ],
)
def test_newer_names_are_the_same(before, now, tmp_path):
    folder = shutil.copytree(FOLDER / "llama4_images", tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        now + key.removeprefix(before) if key.startswith(before) else key: values
        for key, values in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "model.safetensors")
    old, new = open_text(FOLDER / "llama4_images"), open_text(folder)
    assert new.tensors.keys() == old.tensors.keys()
    assert new.parts(Decoder(new.model))


def test_what_is_neither_text_nor_image_is_refused(tmp_path):
    folder = shutil.copytree(FOLDER / "gemma3_images", tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "audio_tower.x": np.zeros(2)}, folder / "model.safetensors")
    published = open_text(folder)
    with pytest.raises(UserError, match=r"not known: audio_tower\.x"):
        published.parts(Decoder(published.model))


def test_defaults_of_gemma_3_4b():
    kind = MULTIMODAL["gemma3"]
    config = text_config(kind, FOUR_BILLION, "config.json")
    model, _ = model_of(FAMILIES[kind.family], config, "config.json")
    mixer = model.block.mixer
    assert (model.vocab_size, model.num_layers, model.embed_dim) == (262_208, 34, 2560)
    assert (mixer.num_heads, mixer.num_kv_heads, mixer.head_dim) == (8, 4, 256)
    assert sum(block.mixer.window is None for block in model.layers) == 5
    assert config["eos_token_id"] == [1, 106]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": None}, "text_config=None must be the text model's settings"),
        (
            {"text_config": {"model_type": "gemma4"}},
            r"text_config\.model_type='gemma4' is not supp",
        ),
        (
            {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}},
            "tie_word_embeddings=False, but in text_config it is True",
        ),
    ],
)
def test_settings_that_say_nothing_or_two_things(change, message):
    with pytest.raises(UserError, match=message):
        text_config(MULTIMODAL["gemma3"], {**FOUR_BILLION, **change}, "config.json")


def test_a_folder_of_text_alone_needs_no_asking():
    folder = FOLDER.parent / "fixtures/gemma3"
    assert open_text(folder).model == open_published(folder).model
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gemma3_text"
