"""`train.init_from`: what a run begins with, on any mesh, and what is refused."""

from pathlib import Path

import jax
import numpy as np
import pytest

from maxlm.checkpoint import Checkpointer
from maxlm.checkpoint.hf.published import open_published
from maxlm.config.errors import UserError
from maxlm.config.schema import CheckpointConfig, RunConfig
from maxlm.data.token_hash import hexdigest
from maxlm.sharding.parameters import layers_of, named_parameters
from maxlm.train.initial import open_source, start_of
from maxlm.train.setup import build_program
from maxlm.train.state import create_state

FIXTURES = Path(__file__).parents[1] / "checkpoint/hf/fixtures"
STEP = 7


def run_of(folder, model, init_from, *, mesh=None, **train):
    """Return a run in `folder`, of a model, on eight devices by default."""
    settings = {
        "run_dir": str(folder),
        "model": model.model_dump(),
        "data": {
            "sources": {"none": {"path": "none"}},
            "tokenizer": "none",
            "sequence_length": 16,
        },
        "mesh": mesh or {"fsdp": 2, "stage": 2, "tensor": 2},
        "train": {"num_steps": 10, "batch_size": 8, "init_from": init_from, **train},
    }
    return RunConfig.model_validate(settings)


def began(config):
    source = open_source(config, "this tokenizer")
    return start_of(None, source, build_program(config), config)


def values_of(tree):
    """Return parameters as numpy by path, rows in the order of their layers."""
    values = {}
    for path, parameter in named_parameters(tree):
        layers = layers_of(parameter) if hasattr(parameter, "get_metadata") else None
        array = np.asarray(parameter[...])
        values[path] = array if layers is None else array[np.argsort(layers)]
    return values


def assert_same(found, wanted):
    found, wanted = values_of(found), values_of(wanted)
    assert found.keys() == wanted.keys()
    for path, values in wanted.items():
        np.testing.assert_array_equal(found[path], values, err_msg=path)


@pytest.fixture(scope="module")
def published():
    return open_published(FIXTURES / "llama2")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, published):
    """A run directory with a checkpoint of one device, as `maxlm train` writes it, and its state."""
    folder = tmp_path_factory.mktemp("saved")
    config = run_of(folder, published.model, None, mesh={"fsdp": 1})
    program = build_program(config, jax.devices()[:1])
    state = create_state(program.state, program.optimizer, program.mesh, seed=3)
    slots = jax.tree.map(lambda slot: slot + 1, state.optimizer)
    state = state._replace(step=state.step + STEP, optimizer=slots)
    record = {
        "consumed": {"rows": 56, "tokens": 896, "flops": 10**9},
        **program.execution.layout.record(),
        "config": config.model_dump(mode="json"),
        "tokenizer": "another tokenizer",
        "token_hash": hexdigest(jax.device_get(state.token_hash)),
    }
    with Checkpointer(folder / "checkpoints", CheckpointConfig()) as checkpointer:
        checkpointer.save(STEP, state, record, wait=True)
    return folder, state


def test_published_weights_begin_at_step_0(published, tmp_path):
    folder = str(FIXTURES / "llama2")
    larger = published.model.model_copy(update={"vocab_size": 72})
    start = began(run_of(tmp_path, larger, folder))
    assert (start.step, int(start.state.step), start.consumed.tokens) == (0, 0, 0)
    assert start.published["vocab_size"] == 64
    decoder = values_of(start.state.decoder)
    assert decoder["embedding/tokens"].shape == (72, 32)
    alone = began(run_of(tmp_path, published.model, folder, mesh={"data": 8, "fsdp": 1}))
    for path, values in values_of(alone.state.decoder).items():
        found = decoder[path]
        if path == "embedding/tokens":
            found = found[:64]
        if path == "head/output":
            found = found[:, :64]
        np.testing.assert_array_equal(found, values, err_msg=path)


def test_a_checkpoint_gives_weights_alone_unless_asked(saved, published, tmp_path, caplog):
    folder, state = saved
    start = began(run_of(tmp_path, published.model, str(folder)))
    assert (start.step, int(start.state.step), start.consumed.tokens) == (0, 0, 0)
    assert_same(start.state.decoder, state.decoder)
    slots = [slot for slot in jax.tree.leaves(start.state.optimizer) if slot.ndim]
    assert all(not np.asarray(slot).any() for slot in slots)
    assert "another tokenizer than data.tokenizer" in caplog.text


def test_a_checkpoint_gives_optimizer_and_step_where_asked(saved, published, tmp_path):
    folder, state = saved
    asked = {"path": str(folder), "checkpoint": STEP, "optimizer": True}
    start = began(run_of(tmp_path, published.model, asked))
    assert (start.step, int(start.state.step), start.consumed.tokens) == (0, 0, 0)
    assert_same(start.state.decoder, state.decoder)
    assert_same(start.state.optimizer, state.optimizer)
    start = began(run_of(tmp_path, published.model, {**asked, "step": True}))
    assert (start.step, int(start.state.step), start.consumed.tokens) == (STEP, STEP, 896)
    assert_same(start.state.optimizer, state.optimizer)


def test_another_model_is_refused_with_all_differences(saved, published, tmp_path):
    folder, _ = saved
    norm = published.model.norm.model_copy(update={"epsilon": 1e-3})
    other = published.model.model_copy(update={"norm": norm, "tie_embeddings": True})
    for path in (str(folder), str(FIXTURES / "llama2")):
        with pytest.raises(UserError) as caught:
            open_source(run_of(tmp_path, other, path), "")
        assert "model.norm.epsilon: 1e-06 -> 0.001" in str(caught.value)
        assert "model.tie_embeddings: False -> True" in str(caught.value)


def test_the_same_layers_in_other_patterns_are_refused(saved, published, tmp_path):
    folder, _ = saved
    segment = published.model.segments[0]
    two = segment.model_copy(update={"pattern": segment.pattern * 2})
    other = published.model.model_copy(update={"segments": (two,)})
    with pytest.raises(UserError, match="do not have the same parameters"):
        open_source(run_of(tmp_path, other, str(folder)), "")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"checkpoint": 5}, r"train.init_from.checkpoint=5: .* has \[7\]"),
        ({"step": True, "num_steps": 7}, "is at step 7, not below train.num_steps=7"),
        ({"path": "nowhere"}, "nowhere has neither checkpoints nor published weights"),
        ({"text_only": True}, "has checkpoints, of which text_only takes no part"),
        (
            {"path": str(FIXTURES.parent / "multimodal/gemma3_images")},
            r"text and images.*train\.init_from: {path: \.\.\., text_only: true}",
        ),
        (
            {"path": str(FIXTURES.parent / "multimodal/gemma3_images"), "text_only": True},
            "is of another model than this run",
        ),
        (
            {"path": str(FIXTURES / "llama2"), "optimizer": True},
            "published weights, which has no checkpoints, optimizer or steps",
        ),
    ],
)
def test_what_a_source_has_not(saved, published, tmp_path, asked, message):
    asked = {"path": str(saved[0]), **asked}
    steps = {"num_steps": asked.pop("num_steps", 10)}
    with pytest.raises(UserError, match=message):
        open_source(run_of(tmp_path, published.model, asked, **steps), "")


def test_a_run_with_checkpoints_goes_on_with_them(saved, published):
    assert open_source(run_of(saved[0], published.model, "nowhere"), "") is None
