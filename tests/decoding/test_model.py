"""`maxlm.load`: what a path means, logits against a second implementation, and generation."""

import inspect
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import maxlm
from maxlm.checkpoint import CheckpointReader
from maxlm.data.tokenizers import Tokenizer
from tests.models import reference

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(trained):
    return maxlm.load(trained)


def bos(model, text):
    return [model.tokenizer.bos_id, *model.tokenizer.encode(text)]


def test_importing_maxlm_loads_nothing_heavy():
    code = (
        "import maxlm, sys; assert not {'jax', 'numpy', 'pydantic'} & set(sys.modules); maxlm.load"
    )
    code += "; assert 'jax' in sys.modules; assert maxlm.UserError is not None; maxlm.nothing"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.stderr.endswith("AttributeError: module 'maxlm' has no attribute 'nothing'\n")


# --- what a path means ----------------------------------------------------------------------------


def test_a_run_a_folder_of_checkpoints_and_one_of_them_are_the_same_model(trained, model, tmp_path):
    tokens = bos(model, "ember quartz")
    want = model.logits(tokens)
    for path, step in (
        (trained / "checkpoints", None),
        (trained / "checkpoints/00000003", None),
        (trained, 3),
    ):
        same = maxlm.load(path, step=step)
        np.testing.assert_array_equal(same.logits(tokens), want)
        assert same.tokenizer.fingerprint == model.tokenizer.fingerprint
        assert same.step == 3
    before = maxlm.load(trained / "checkpoints/00000002")
    assert before.step == 2
    assert np.abs(before.logits(tokens) - want).max() > 1e-6


def test_one_checkpoint_can_be_carried_elsewhere_with_its_tokenizer(trained, model, tmp_path):
    shutil.copytree(trained / "checkpoints/00000003", tmp_path / "00000003")
    with pytest.raises(maxlm.UserError, match=r"tokenizer: the model's tokenizer is missing"):
        maxlm.load(tmp_path / "00000003")
    shutil.copytree(trained / "tokenizer", tmp_path / "00000003/tokenizer")
    assert maxlm.load(tmp_path / "00000003").logits([1, 5]).shape == (2, model.num_ids)
    (tmp_path / "00000003").rename(tmp_path / "best")
    with pytest.raises(
        maxlm.UserError, match="best is one checkpoint, whose folder must have its step"
    ):
        maxlm.load(tmp_path / "best")
    with pytest.raises(maxlm.UserError, match="do not give a step besides"):
        maxlm.load(trained / "checkpoints/00000003", step=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 7}, r"has no checkpoint of step 7; it has \[3, 2\]"),
        ({"dtype": "int8"}, "dtype='int8' must be one of float32, bfloat16, float16"),
        ({"mesh": {"stage": 2}}, "'stage' is none of the axes .*: data, fsdp, expert, tensor"),
        ({"mesh": {"tensor": 0}}, "tensor=0 must be a whole number, at least 1"),
        (
            {"mesh": {"tensor": 16}},
            "mesh: tensor=16 must be at most 8, the devices of this machine",
        ),
        ({"mesh": {"tensor": 8}}, "num_heads=2 must be divisible by mesh.tensor=8"),
    ],
)
def test_what_cannot_be_loaded(trained, arguments, message):
    with pytest.raises(maxlm.UserError, match=message):
        maxlm.load(trained, **arguments)


def test_a_model_that_was_saved_without_a_tokenizer(trained, monkeypatch):
    read = CheckpointReader.latest_record
    monkeypatch.setattr(
        CheckpointReader, "latest_record", lambda self: read(self) | {"tokenizer": None}
    )
    model = maxlm.load(trained)
    assert model.tokenizer is None
    assert model.num_ids == model.config.vocab_size
    assert model.generate([[1, 5]], max_tokens=2, temperature=0) == [
        maxlm.load(trained).generate([1, 5], max_tokens=2, temperature=0)
    ]
    for speak in (model.generate, lambda text: list(model.stream(text))):
        with pytest.raises(maxlm.UserError, match="saved without a tokenizer; give token ids"):
            speak("ember")


def test_numbers_and_settings(model):
    of_arrays = sum(x.size for x in jax.tree.leaves(model._weights.stacked()))
    assert model.num_parameters == of_arrays
    assert model.config.embed_dim == 16
    assert model.num_ids == model.tokenizer.vocab_size == 320


def test_the_examples_of_the_page_run(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quickstart").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/api.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["logits"].shape == (len(names["tokens"]), names["model"].num_ids)
    assert [type(answer) for answer in names["answers"]] == [str, str]
    assert capsys.readouterr().out


def test_the_page_names_what_there_is():
    """Signatures as they are, and every public attribute of a model and of tokenizers."""
    page = (ROOT / "docs/api.md").read_text()
    assert list(inspect.signature(maxlm.load).parameters) == ["path", "step", "mesh", "dtype"]
    assert "## `maxlm.load(path, *, step=None, mesh=None, dtype=None)`" in page
    generate, stream = (
        {
            name: p.default
            for name, p in inspect.signature(method).parameters.items()
            if p.kind == p.KEYWORD_ONLY
        }
        for method in (maxlm.Model.generate, maxlm.Model.stream)
    )
    assert generate == stream
    settings = ", ".join(f"{name}={default}" for name, default in generate.items())
    assert f"## `model.generate(prompts, *, {settings})`" in page
    for kind in (maxlm.Model, Tokenizer):
        public = [name for name in vars(kind) if not name.startswith("_")]
        assert [name for name in public if name != "check" and f"{name}(" not in page] == []


# --- logits ---------------------------------------------------------------------------------------


PACKED = np.array([[1, 9, 8, 7, 2, 1, 30, 31, 2, 0], [1, 4, 4, 4, 4, 4, 4, 4, 4, 2]])
SEGMENTS = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0], [3, 3, 3, 3, 3, 3, 3, 3, 3, 3]])
POSITIONS = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0], list(range(10))])


@pytest.fixture(scope="module")
def packed(model):
    """Return the logits of two rows of packed documents by the second implementation, in fp64."""
    return reference.logits(model._weights.stacked(), PACKED, SEGMENTS, POSITIONS)


def test_logits_are_those_of_the_second_implementation(model, packed):
    got = model.logits(PACKED, SEGMENTS)
    assert got.dtype == np.float32
    assert got.shape == (2, 10, model.num_ids)
    real = SEGMENTS > 0
    np.testing.assert_allclose(got[real], packed[real], rtol=1e-4, atol=1e-5)
    alone = model.logits(PACKED[0, 5:9].tolist())
    assert alone.shape == (4, model.num_ids)
    np.testing.assert_allclose(alone, packed[0, 5:9], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mesh", [{"tensor": 2}, {"fsdp": 2, "data": 2}, {"fsdp": 4, "tensor": 2}])
def test_logits_do_not_depend_on_the_mesh(trained, packed, mesh):
    loaded = maxlm.load(trained, mesh=mesh)
    got, real = loaded.logits(PACKED, SEGMENTS), SEGMENTS > 0
    np.testing.assert_allclose(got[real], packed[real], rtol=1e-4, atol=1e-5)
    if mesh == {"fsdp": 4, "tensor": 2}:
        check_nats_and_hidden(loaded, packed)


def check_nats_and_hidden(model, packed):
    """Compare with what the second implementation's logits give in double precision."""
    nats, hidden = model.nats(PACKED, SEGMENTS), model.hidden(PACKED, SEGMENTS)
    assert (nats.shape, hidden.shape) == ((2, 9), (2, 10, 16))
    log_sums = np.log(np.exp(packed).sum(axis=-1))[:, :-1]
    expected = log_sums - np.take_along_axis(packed[:, :-1], PACKED[:, 1:, None], 2)[..., 0]
    known = (SEGMENTS[:, :-1] > 0) & (SEGMENTS[:, :-1] == SEGMENTS[:, 1:])
    np.testing.assert_allclose(nats[known], expected[known], rtol=1e-4, atol=1e-5)
    output_DV = np.asarray(model._weights.stacked().output_DV(), np.float64)[:, : model.num_ids]
    real = SEGMENTS > 0
    np.testing.assert_allclose((hidden @ output_DV)[real], packed[real], rtol=1e-3, atol=1e-4)


def test_nats_and_hidden_states_are_those_of_the_logits(model, packed, monkeypatch):
    check_nats_and_hidden(model, packed)
    alone = model.nats(PACKED[1])
    np.testing.assert_allclose(alone, model.nats(PACKED, SEGMENTS)[1], rtol=1e-5)


def test_logits_in_bfloat16_are_near(trained, packed):
    narrow = maxlm.load(trained, dtype="bfloat16")
    matrices = [x.dtype for x in jax.tree.leaves(narrow._weights.stacked()) if x.ndim > 2]
    assert set(map(str, matrices)) == {"bfloat16"}
    got, real = narrow.logits(PACKED, SEGMENTS), SEGMENTS > 0
    assert got.dtype == np.float32
    error = np.abs(got[real] - packed[real]).max()
    assert 1e-5 < error < 0.02 * np.abs(packed).max()


def test_ids_that_only_fill_the_vocabulary_up_have_no_logits(model, monkeypatch):
    whole = model.logits([1, 5, 6])
    monkeypatch.setattr(model, "num_ids", 300)
    np.testing.assert_array_equal(model.logits([1, 5, 6]), whole[:, :300])
    with pytest.raises(maxlm.UserError, match=r"token id 319 is not in \[0, 300\)"):
        model.logits([1, 319])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), r"tokens must be whole numbers"),
        ((np.zeros((0,), int),), r"tokens has the shape \(0,\)"),
        (([[[1]]],), r"tokens has the shape \(1, 1, 1\)"),
        (([[1, 2], [3]],), "tokens must be whole numbers, rows of one length"),
        (([1.0],), "tokens must be whole numbers"),
        (("text",), "tokens must be whole numbers"),
        (([-1],), r"token id -1 is not in \[0, 320\)"),
        (([1, 2], [1]), r"segment_ids has the shape \(1,\) and needs that of tokens, \(2,\)"),
        (([1, 2], [1, -1]), "numbers from 0 on"),
        (([1] * 129,), "129 tokens, more than model.position.max_length=128"),
    ],
)
def test_tokens_that_are_none(model, arguments, message):
    with pytest.raises(maxlm.UserError, match=message):
        model.logits(*arguments)


# --- generation -----------------------------------------------------------------------------------


def test_the_likeliest_tokens_by_hand(model):
    """Token by token, the largest logit of all that is there, up to EOS."""
    ids = bos(model, "ember ")
    prompt = len(ids)
    while len(ids) < prompt + 8:
        token = int(model.logits(ids)[-1].argmax())
        if token == model.tokenizer.eos_id:
            break
        ids.append(token)
    assert model.generate(ids[:prompt], max_tokens=8, temperature=0) == ids[prompt:]
    text = model.generate("ember ", max_tokens=8, temperature=0)
    assert text == model.tokenizer.decode(ids)[len("ember ") :]


def test_texts_together_are_the_texts_alone(model):
    prompts = ["ember ", "", "quartz river sable tundra umber velvet willow " * 2]
    settings = {"max_tokens": 12, "temperature": 0}
    together = model.generate(prompts, **settings)
    assert together == [model.generate(prompt, **settings) for prompt in prompts]
    assert ["".join(model.stream(prompt, **settings)) for prompt in prompts] == together
    assert model.generate([], **settings) == []
    ids = model.generate([bos(model, prompt) for prompt in prompts], **settings)
    assert [isinstance(answer, list) for answer in ids] == [True] * 3
    assert model.generate(np.asarray(bos(model, prompts[0])), **settings) == ids[0]


def test_seeds(model):
    first = model.generate("ember ", max_tokens=12, seed=1)
    assert model.generate("ember ", max_tokens=12, seed=1) == first
    assert model.generate("ember ", max_tokens=12, seed=2) != first
    # A text's draws are its row's, however many rows are below it.
    assert model.generate(["ember ", "x", "y"], max_tokens=12, seed=1)[0] == first


def test_a_prompt_with_its_own_seed_has_its_answer_whatever_stands_beside_it(model):
    prompts, seeds = ["ember ", "quartz river", "x", "ember "], [3, 2**32 - 1, 5, 4]
    settings = {"max_tokens": 12, "temperature": 1.5}
    together = model.generate(prompts, seed=seeds, **settings)
    turned = model.generate(prompts[::-1], seed=seeds[::-1], **settings)
    alone = [
        model.generate([prompt], seed=[seed], **settings)[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert together == turned[::-1] == alone
    assert together[0] != together[3], "another seed"
    with pytest.raises(maxlm.UserError, match="seed: 2 numbers for 4 prompts"):
        model.generate(prompts, seed=[1, 2])
    with pytest.raises(maxlm.UserError, match=r"seed=-1 must be at least 0"):
        model.generate(prompts, seed=[1, 2, 3, -1])


def test_tokens_that_end_an_answer(model):
    # A model of three steps may answer with its end, or with one token again and again.
    prompts = [[model.tokenizer.bos_id, first] for first in range(20, 60)]
    answers = [model.generate(prompt, max_tokens=12, temperature=0) for prompt in prompts]
    prompt, ids = max(zip(prompts, answers, strict=True), key=lambda pair: len(set(pair[1])))
    assert len(set(ids)) > 1
    for stop in set(ids):
        cut = model.generate(prompt, max_tokens=12, temperature=0, stop=[stop])
        assert cut == ids[: ids.index(stop)]
    assert model.generate("ember ", max_tokens=2, stop=["</s>"]) == model.generate(
        "ember ", max_tokens=2
    )
    with pytest.raises(maxlm.UserError, match=r"stop: '<end>' is no special token .*'</s>'"):
        model.generate("ember ", max_tokens=2, stop=["<end>"])


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ("a", {"temperature": -1}, "temperature=-1 must be a number >= 0"),
        (
            "a",
            {"top_p": 2, "max_tokens": 0},
            "top_p=2 must be above 0 .*; max_tokens=0 must be at least 1",
        ),
        ("a", {"max_tokens": 127}, "2 tokens and max_tokens=127, together more than"),
        ([[]], {}, "a prompt must be whole numbers"),
        ([[1], [[2]]], {}, r"a prompt has the shape \(1, 1\)"),
        ([[1, 320]], {}, r"token id 320 is not in \[0, 320\)"),
        ([1.5], {}, "a prompt must be whole numbers"),
    ],
)
def test_what_cannot_be_generated(model, prompts, settings, message):
    with pytest.raises(maxlm.UserError, match=message):
        model.generate(prompts, **settings)


@pytest.fixture
def compiled(caplog):
    """Return a function that names the programs which were compiled since its last call."""
    logging.getLogger("jax").setLevel(logging.WARNING)
    with jax.log_compiles():

        def names():
            found = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
            caplog.clear()
            return found

        yield names


def test_programs_are_compiled_once_for_their_shapes(trained, compiled):
    model = maxlm.load(trained)
    compiled()
    model.generate("ember ", max_tokens=4)
    first = compiled()
    assert first.count("program") == 2  # a prompt, and one more token
    model.generate("quartz river sable", max_tokens=3, seed=5)
    model.generate(["lattice"], max_tokens=8)
    assert compiled() == []
    model.generate(["lattice", "river", "sable"], max_tokens=8)
    assert compiled().count("program") == 2
    model.generate(["lattice", "river", "sable", "mono"], max_tokens=2)
    assert compiled() == []
    model.logits([1, 2])
    assert compiled().count("forward") == 1
    model.logits([[1, 2, 3]], [[1, 1, 2]])
    assert compiled() == []
