"""Losses, gradients and token hash do not depend on the mesh, on when parameters are gathered, or on microbatches."""

import functools
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maxlm.config.schema import MESH_AXES
from tests.train.program import assert_same, make_config, run

MESHES = [{"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


@functools.cache
def one_device():
    return run(make_config())


@pytest.mark.parametrize("gather", ["layer", "microbatch", "step"])
@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: "_".join(f"{a}{n}" for a, n in mesh.items()))
def test_same_on_every_mesh(mesh, gather):
    # Two microbatches on the meshes, one on the single device: they must not matter either.
    assert_same(run(make_config(mesh=mesh, train={"gather": gather, "microbatches": 2})), one_device())


@pytest.mark.parametrize("remat", ["full", {"names": ["query", "attention_out", "attention_lse", "mlp_hidden"]}])
def test_same_with_rematerialisation(remat):
    assert_same(run(make_config(mesh={"fsdp": 2, "tensor": 2}, train={"remat": remat})), one_device())


MIXERS = st.fixed_dictionaries(
    {
        "kind": st.just("attention"),
        "window": st.sampled_from([None, 5]),
        "qk_norm": st.sampled_from(["none", "rmsnorm"]),
        "bias": st.sampled_from(["none", "qkv", "all"]),
    }
)
FFNS = st.fixed_dictionaries(
    {
        "kind": st.just("mlp"),
        "activation": st.sampled_from(["swiglu", "geglu", "relu", "gelu"]),
        "bias": st.sampled_from(["none", "all"]),
    }
)
MODELS = st.fixed_dictionaries(
    {
        "pattern": st.lists(st.fixed_dictionaries({"mixer": MIXERS, "ffn": FFNS}), min_size=1, max_size=2),
        "num_layers": st.sampled_from([2, 4]),
        "num_kv_heads": st.sampled_from([4, 8]),
        "norm": st.fixed_dictionaries({"kind": st.sampled_from(["rmsnorm", "layernorm"])}),
        "position": st.sampled_from([{"kind": "rope"}, {"kind": "learned", "max_length": 16}, {"kind": "none"}]),
        "tie_embeddings": st.booleans(),
    }
)
TRAINS = st.fixed_dictionaries(
    {
        "gather": st.sampled_from(["layer", "microbatch", "step"]),
        "microbatches": st.sampled_from([1, 2]),
        "remat": st.sampled_from(["none", "full"]),
    }
)
SMALL_MESHES = st.sampled_from(
    [
        {axis: size for axis, size in zip(MESH_AXES, sizes, strict=True) if size > 1}
        for sizes in [
            (2, 1, 2, 1, 1, 2),
            (1, 1, 2, 1, 1, 4),
            (4, 1, 1, 1, 1, 2),
            (2, 1, 4, 1, 1, 1),
            (1, 1, 1, 1, 1, 2),
        ]
    ]
)


def check_random(model, mesh, train, loss):
    assert math.prod(mesh.values()) <= 8
    assert_same(
        run(make_config(model=model, mesh=mesh, train={**train, **loss})), run(make_config(model=model, train=loss))
    )


LOSSES = st.sampled_from([{}, {"z_loss": 1e-3, "label_smoothing": 0.1}])


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(model=MODELS, mesh=SMALL_MESHES, train=TRAINS, loss=LOSSES)
def test_same_for_random_models(model, mesh, train, loss):
    check_random(model, mesh, train, loss)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=MODELS, mesh=SMALL_MESHES, train=TRAINS, loss=LOSSES)
def test_same_for_many_random_models(model, mesh, train, loss):
    check_random(model, mesh, train, loss)
