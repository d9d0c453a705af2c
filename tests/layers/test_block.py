"""Blocks with one layer, and with several mixers, in whole models."""

import functools

import pytest

from maxlm.models import cost
from tests.train.program import MODEL, assert_same, make_config, run

NONE = {"kind": "none"}
NARROW = {"kind": "attention", "num_heads": 4, "head_dim": 4, "window": 3}
BOTH = {
    "kind": "parallel",
    "mixers": [{"kind": "attention", "num_heads": 8, "head_dim": 4}, NARROW],
}
PATTERN = {"num_layers": 3, "pattern": [{"mixer": NONE}, {"ffn": NONE}, {"mixer": BOTH}]}


@functools.cache
def one_device():
    return run(make_config(model=PATTERN))


def test_parameters_are_those_of_the_layers_that_there_are():
    dim, mlp = MODEL["embed_dim"], 3 * MODEL["embed_dim"] * MODEL["mlp_dim"]
    attention = 4 * dim * dim
    parts = cost.parameter_parts(make_config(model=PATTERN).model)
    assert parts["mixers"] == 2 * attention + 4 * dim * 16
    assert parts["feed-forward"] == 2 * mlp
    assert parts["norms"] == (1 + 1 + 2 + 1) * dim


@pytest.mark.parametrize(
    ("mesh", "train"),
    [
        ({"fsdp": 2, "tensor": 2}, {"remat": {"attention_out": "save", "attention_lse": "save"}}),
        ({"context": 2, "tensor": 2}, {"remat": "full"}),
    ],
    ids=["fsdp_tensor", "context_tensor"],
)
def test_the_same_on_every_mesh(mesh, train):
    assert_same(run(make_config(model=PATTERN, mesh=mesh, train=train)), one_device())
