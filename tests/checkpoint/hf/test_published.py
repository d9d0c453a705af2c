"""What is refused of a folder of published weights, and everything at once."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maxlm.checkpoint.hf.families import FAMILIES
from maxlm.checkpoint.hf.published import model_of, open_published
from maxlm.checkpoint.hf.save import plan_export
from maxlm.config.errors import UserError
from maxlm.models.decoder import Decoder

FIXTURES = Path(__file__).parent / "fixtures"
LLAMA = json.loads((FIXTURES / "llama2/config.json").read_text())


@pytest.fixture
def folder(tmp_path):
    """A copy of a small Llama that a test may change."""
    return Path(shutil.copytree(FIXTURES / "llama2", tmp_path / "llama"))


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_type": "bert"},
            "model_type='bert' is not known; known are deepseek_v2, deepseek_v3, gemma",
        ),
        ({"model_type": None}, "model_type=None is not known"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; known is 'silu'"),
        ({"hidden_act": ["silu"]}, r"hidden_act=\['silu'\] is not supported"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type='spiral' is not supported"),
        ({"rope_parameters": {"mrope_section": [1]}}, r"rope_parameters has \['mrope_section'\]"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            r"rope_type=llama3 without \['high_freq_factor', 'low_freq_factor'\]",
        ),
        ({"new_feature": {"a": 1}}, r"new_feature=\{'a': 1\} is not known"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": -1}, "model.num_layers: Input should be greater than or equal to 1"),
        ({"num_key_value_heads": 3}, "num_heads=4 must be divisible by .*num_kv_heads=3"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method='awq' cannot be read"),
    ],
)
def test_config_values_that_cannot_be_honoured(folder, values, message):
    change_config(folder, **values)
    with pytest.raises(UserError, match=message):
        open_published(folder)


def test_all_of_them_are_told_at_once(folder):
    change_config(folder, hidden_act="relu", new_feature=1, other_feature=2)
    with pytest.raises(UserError) as caught:
        open_published(folder)
    for text in ("hidden_act='relu'", "new_feature=1", "other_feature=2"):
        assert text in str(caught.value)


def test_null_and_absent_keys_have_the_family_s_default():
    config = {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"}
    config |= {"num_key_value_heads": None, "head_dim": None}
    model, _ = model_of(FAMILIES["llama"], config, "config.json")
    assert model.norm.epsilon == 1e-6
    assert (model.block.mixer.num_kv_heads, model.block.mixer.head_dim) == (4, 8)


def test_both_spellings_of_rotary_positions_mean_the_same():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    bare = {key: value for key, value in LLAMA.items() if key != "rope_parameters"}
    newer = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **scaling}}
    older = {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **scaling}}
    models = [model_of(FAMILIES["llama"], {**bare, **way}, "")[0] for way in (newer, older)]
    assert models[0] == models[1]
    assert models[0].block.mixer.position.theta == 5e5


def test_missing_unknown_and_misshaped_tensors_are_all_told(folder):
    def change(tensors):
        for layer in range(2):
            del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
        tensors["model.layers.0.mlp.extra.weight"] = np.zeros((2, 2), np.float32)
        tensors["model.norm.weight"] = np.zeros((31,), np.float32)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros((4,), np.float32)

    change_tensors(folder, change)
    published = open_published(folder)
    with pytest.raises(UserError) as caught:
        published.parts(Decoder(published.model))
    text = str(caught.value)
    assert "missing: model.layers.*.mlp.up_proj.weight (2 tensors" in text
    assert "not known: model.layers.0.mlp.extra.weight" in text
    assert "model.norm.weight: shape [31], not [32]" in text
    assert "inv_freq" not in text


def test_names_without_their_prefix(tmp_path):
    """The first GPT-2 files have h.0... where later ones have transformer.h.0..., and buffers."""
    folder = Path(shutil.copytree(FIXTURES / "gpt2", tmp_path / "gpt2"))

    def change(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.float32)

    change_tensors(folder, change)
    published = open_published(folder)
    assert published.parts(Decoder(published.model))


def test_a_tied_head_that_is_in_the_file_all_the_same(tmp_path):
    folder = Path(shutil.copytree(FIXTURES / "llama3", tmp_path / "llama"))
    change_tensors(
        folder,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["model.embed_tokens.weight"] + 0}
        ),
    )
    published = open_published(folder)
    assert published.parts(Decoder(published.model))


def test_a_model_that_no_family_can_say():
    """The reasons name the layer and the setting."""
    model, _ = model_of(FAMILIES["llama"], LLAMA, "config.json")
    mixer = model.block.mixer.model_copy(update={"softcap": 30.0})
    segment = model.segments[0]
    block = segment.pattern[0].model_copy(update={"mixer": mixer})
    one = segment.model_copy(update={"pattern": (block,), "repeat": 1})
    rest = segment.model_copy(update={"repeat": 1})
    odd = model.model_copy(update={"segments": (rest, one)})
    with pytest.raises(UserError) as caught:
        plan_export(Decoder, odd, vocab_size=64, about={})
    text = str(caught.value)
    assert "llama: it would change layer 1.mixer.softcap: 30.0 -> (none)" in text
    assert "mixtral: no layer of the model is of the kind moe" in text


def test_a_family_that_is_not_known():
    model, _ = model_of(FAMILIES["llama"], LLAMA, "config.json")
    with pytest.raises(
        UserError, match="--family=lama is not known; use one of deepseek_v2, deepseek_v3, gemma"
    ):
        plan_export(Decoder, model, vocab_size=64, about={}, family="lama")
