"""Blocks with one layer, with several mixers, and with every kind of norms and residual, in whole
models.
"""

import functools

import numpy as np
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


MOE = {
    "kind": "moe",
    "num_experts": 4,
    "experts_per_token": 2,
    "expert_dim": 8,
    "shared_dim": 8,
    "shared_gate": True,
    "bias": "all",
    "activation": "swiglu_clamped",
    "router": {"bias": True},
}
RESIDUALS = {
    "num_layers": 5,
    "embed_scale": 5.0,
    "residual_scale": 0.5,
    "logit_scale": 0.7,
    "logit_softcap": 2.0,
    "norm": {"kind": "rmsnorm", "scale": "one_plus"},
    "prefix": [{"norms": "post", "ffn": {"activation": "relu2"}}],
    "pattern": [
        {"norms": "sandwich", "residual": "parallel", "ffn": MOE},
        {"residual": "parallel_one_norm", "mixer": {"qk_norm": "rmsnorm"}},
    ],
}
"""Three repetitions of patterns, which two stages hold unequally."""


@functools.cache
def one_device():
    return run(make_config(model=PATTERN))


@functools.cache
def one_device_with_residuals():
    return run(make_config(model=RESIDUALS, train={"microbatches": 2}))


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


def test_norms_are_those_that_the_blocks_have():
    dim = MODEL["embed_dim"]
    # post: one behind each of two layers; parallel sandwich: two each; one for both layers; the
    # head's
    of_blocks, of_heads = 2 + 2 * 4 + 2 * 1 + 1, 2 * 2 * MODEL["head_dim"]
    parts = cost.parameter_parts(make_config(model=RESIDUALS).model)
    assert parts["norms"] == of_blocks * dim
    plain = {**RESIDUALS["pattern"][1], "mixer": {}}
    without = {**RESIDUALS, "pattern": [RESIDUALS["pattern"][0], plain]}
    others = cost.parameter_parts(make_config(model=without).model)
    assert parts["mixers"] - others["mixers"] == of_heads


@pytest.mark.parametrize(
    ("mesh", "train"),
    [
        (
            {"fsdp": 2, "expert": 2, "tensor": 2},
            {"remat": {"mixer_out": "save", "ffn_out": "save"}},
        ),
        ({"stage": 2, "tensor": 2}, {"remat": "full"}),
    ],
    ids=["fsdp_expert_tensor", "stage_tensor"],
)
def test_residuals_are_the_same_on_every_mesh(mesh, train):
    train = {**train, "microbatches": 2}
    result = run(make_config(model=RESIDUALS, mesh=mesh, train=train))
    assert_same(result, one_device_with_residuals())
    for path, gradient in result.gradients.items():
        assert np.abs(gradient).max() > 0, path
