"""Latent attention: gradients against differences of the plain implementation, the same numbers on
every mesh, and what decoding keeps.
"""

import functools

import jax
import numpy as np
import pytest

from maxlm.models import cost
from maxlm.train.setup import build_program
from tests.models.differences import check_gradients
from tests.train.program import assert_same, make_config, run

LATENT = {
    "kind": "mla",
    "num_heads": 8,
    "kv_rank": 8,
    "nope_dim": 6,
    "rope_dim": 4,
    "value_dim": 5,
    "position": {"layout": "interleaved"},
}
LOW, FULL = {**LATENT, "query_rank": 16}, {**LATENT, "scale": 0.4}
MODEL = {"num_layers": 4, "pattern": [{"mixer": LOW}, {"mixer": FULL}]}


def test_gradients_equal_differences_of_the_plain_implementation():
    assert check_gradients({**MODEL, "num_layers": 2}, lambda path: "/mixer/" in path) == 9 + 7


@functools.cache
def one_device():
    return run(make_config(model=MODEL))


KEPT = {"query_latent": "save", "kv_latent": "save", "attention_out": "save"}


@pytest.mark.parametrize(
    ("mesh", "train"),
    [
        ({"fsdp": 2, "context": 2, "tensor": 2}, {"remat": KEPT}),
        ({"context": 2, "tensor": 4, "context_kind": "all_gather"}, {"gather": "step"}),
        ({"stage": 2, "context": 2, "tensor": 2, "context_kind": "ulysses"}, {"microbatches": 2}),
    ],
    ids=["ring", "all_gather", "ulysses_in_stages"],
)
def test_same_on_every_mesh(mesh, train):
    assert_same(run(make_config(model=MODEL, mesh=mesh, train=train)), one_device())


def test_decoding_keeps_the_latent_alone():
    program = build_program(make_config(model=MODEL), jax.devices()[:1])
    state = program.declared.stack[0][0].mixer.decoding_state(3, 7, np.float32)
    assert state.shape == (3, 7, 8 + 4)


def test_products_of_scores_and_values_are_counted():
    model = make_config(model=MODEL).model
    # 3 tokens see 1 + 2 + 3 keys; 2 FLOPs a number, thrice with the backward pass; 4 layers of 8
    # heads with keys of 10 and values of 5.
    assert cost.flops_parts(model, 3)["mixing"] == 4 * 8 * 3 * 2 * (10 + 5) * 6 / 3


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        (
            {"tensor": 3},
            "mixer.num_heads=8 must be divisible by mesh.tensor=3; use model.block.mixer.num_heads=6",
        ),
        ({"context": 16, "context_kind": "ulysses"}, "or mesh.context_kind=ring"),
        (
            {"fsdp": 16},
            "mixer.kv_rank=8 must be divisible by mesh.fsdp=16; use model.block.mixer.kv_rank=16, "
            "or mesh.fsdp=8, with more of the devices on mesh.data or mesh.tensor",
        ),
    ],
)
def test_what_does_not_divide_is_named_with_its_cure(mesh, expected):
    config = make_config(model={"num_layers": 2, "pattern": [{"mixer": LOW}]}, mesh=mesh)
    mixer = config.model.layers[0].mixer
    texts = [problem.text for problem in mixer.problems("model.block.mixer", config)]
    assert any(expected in text for text in texts), texts


def test_an_odd_rotated_part_is_named_with_its_cure():
    config = make_config(model={"num_layers": 2, "pattern": [{"mixer": {**LOW, "rope_dim": 5}}]})
    (problem,) = config.model.layers[0].mixer.problems("model.block.mixer", config)
    assert problem.text == (
        "model.block.mixer.rope_dim=5 must be even for model.block.mixer.position.kind=rope; use 4 or 6"
    )
