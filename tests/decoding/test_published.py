"""`maxlm.load` of published weights, as a folder of them and imported."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import maxlm
from maxlm import runtime
from maxlm.cli import main
from tests.data.tokenizers.kinds import EOS, byte_level, write_hf

FIXTURE = Path(__file__).parents[1] / "checkpoint/hf/fixtures/llama3"


@pytest.fixture(scope="module")
def expected():
    """What transformers has computed: (tokens, logits) by name."""
    arrays = load_file(FIXTURE / "expected.safetensors")
    return {
        name: (arrays[f"tokens_{name}"], arrays[f"logits_{name}"])
        for name in ("long", "short", "other")
    }


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The same weights as a checkpoint, with rows that fill its vocabulary up."""
    folder = tmp_path_factory.mktemp("imported") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "start", lambda settings: None)
        assert main(["import", str(FIXTURE), str(folder), "--vocab-multiple", "50"]) == 0
    return folder


@pytest.mark.parametrize("mesh", [{}, {"tensor": 2}])
def test_logits_are_those_of_transformers(expected, imported, mesh):
    for path, step in ((FIXTURE, None), (imported, 0), (imported / "checkpoints/00000000", 0)):
        model = maxlm.load(path, mesh=mesh)
        assert model.step == step
        for tokens, logits in expected.values():
            got = model.logits(tokens)
            assert got.shape == logits.shape
            np.testing.assert_allclose(got, logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    assert model.config.vocab_size == 100
    assert model.num_ids == expected["long"][1].shape[-1]


def test_biases_in_16_bits_on_two_devices():
    """Each device adds its part once: a bias that both added would show, as one that none did."""
    folder = FIXTURE.parent / "gpt_neox"
    arrays = load_file(folder / "expected.safetensors")
    tokens, logits = arrays["tokens_long"], arrays["logits_long"]
    for mesh in ({}, {"tensor": 2}):
        got = maxlm.load(folder, mesh=mesh, dtype="bfloat16").logits(tokens)
        np.testing.assert_allclose(got, logits, rtol=0, atol=0.02 * np.abs(logits).max())


def test_documents_packed_into_a_row(expected):
    (short, short_logits), (other, other_logits) = expected["short"], expected["other"]
    segments = [1] * len(short) + [2] * len(other)
    got = maxlm.load(FIXTURE).logits([*short, *other], segments)
    want = np.concatenate([short_logits, other_logits])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_a_published_tokenizer_speaks(imported, tmp_path, caplog):
    """One with more ids than the model's vocabulary, which holds the ids of few letters."""
    write_hf(tmp_path / "weights", byte_level(), {"eos_token": EOS})
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FIXTURE / name, tmp_path / "weights" / name)
    model = maxlm.load(tmp_path / "weights")
    assert model.tokenizer.eos_id == 2
    assert model.num_ids == model.config.vocab_size < model.tokenizer.vocab_size
    text = model.tokenizer.decode([40, 41, 42])
    answer = model.generate(text, max_tokens=5, temperature=0)
    ids = model.generate([2, *model.tokenizer.encode(text)], max_tokens=5, temperature=0)
    assert model.tokenizer.decode(ids) == answer
    with pytest.raises(
        maxlm.UserError, match=r"token id \d+ is not in \[0, \d+\), the model's ids"
    ):
        model.generate("a word of the tokenizer's")
    assert not caplog.records


def test_tokenizers_that_cannot_be_used_are_named(tmp_path, caplog):
    shutil.copytree(FIXTURE, tmp_path / "weights")
    caplog.set_level(logging.WARNING)
    assert maxlm.load(tmp_path / "weights").tokenizer is None
    assert "takes token ids, and no texts" in caplog.text
    assert "has one of tokenizer.json, tokenizer.model" in caplog.text
    caplog.clear()
    tree = {"model": {"type": "WordLevel", "vocab": {}}}
    (tmp_path / "weights/tokenizer.json").write_text(json.dumps(tree))
    assert maxlm.load(tmp_path / "weights").tokenizer is None
    assert "its model is WordLevel; BPE, Unigram and WordPiece can be read" in caplog.text


def test_an_answer_ends_at_any_of_several_tokens(tmp_path):
    """The fixture's own is 2; generation_config.json comes before config.json."""
    folder = shutil.copytree(FIXTURE, tmp_path / "weights")
    (folder / "generation_config.json").write_text('{"eos_token_id": []}')
    free = maxlm.load(folder).generate([5, 6, 7], max_tokens=16, temperature=0)
    last = free[9]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [63, last]}))
    model = maxlm.load(folder)
    answer = model.generate([5, 6, 7], max_tokens=16, temperature=0)
    assert answer == free[: free.index(last)]
    assert model.generate([5, 6, 7], max_tokens=16, temperature=0, stop=[free[0]]) == []
    for wrong in ([63, 64], "x", [True]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(
            maxlm.UserError, match=r"generation_config\.json: eos_token_id=.* is no id"
        ):
            maxlm.load(folder)


def test_what_is_no_published_model(tmp_path):
    with pytest.raises(maxlm.UserError, match="published weights, which has no step 3"):
        maxlm.load(FIXTURE, step=3)
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(maxlm.UserError, match="model_type='nothing' is not known"):
        maxlm.load(tmp_path)
