"""Losses, gradients and token hash do not depend on the mesh, on when parameters are gathered, or
on microbatches.
"""

import functools
import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maxlm.config.schema import MESH_AXES
from maxlm.sharding.mesh import batch_sharding
from maxlm.train.setup import build_program, compile_losses
from maxlm.train.state import create_state
from tests.train.program import assert_same, make_batch, make_config, run

MESHES = [{"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


def mesh_name(mesh):
    return "_".join(f"{axis}{size}" for axis, size in mesh.items() if size != 1)


@functools.cache
def one_device():
    return run(make_config())


@pytest.mark.parametrize("gather", ["layer", "microbatch", "step"])
@pytest.mark.parametrize("mesh", MESHES, ids=mesh_name)
def test_same_on_every_mesh(mesh, gather):
    # Two microbatches on the meshes, one on the single device: they must not matter either.
    assert_same(
        run(make_config(mesh=mesh, train={"gather": gather, "microbatches": 2})), one_device()
    )


SOME = {
    "query": "offload",
    "attention_out": "save",
    "attention_lse": "save",
    "mixer_out": "save",
    "mlp_hidden": "save",
}


@pytest.mark.parametrize(
    ("remat", "offload"), [("full", []), (SOME, []), ("full", ["activations", "optimizer"])]
)
def test_same_with_rematerialisation(remat, offload):
    train = {"remat": remat, "offload": offload}
    assert_same(run(make_config(mesh={"fsdp": 2, "tensor": 2}, train=train)), one_device())


def test_same_in_stages_with_offloading():
    train = {"remat": SOME, "offload": ["activations", "optimizer"], "microbatches": 2}
    assert_same(run(make_config(mesh={"stage": 2, "fsdp": 2}, train=train)), one_device())


CONTEXT_MODEL = {
    "pattern": [
        {"mixer": {"kind": "attention", "window": 5, "sinks": True, "bias": "qkv"}},
        {"mixer": {"kind": "attention", "softcap": 2.0, "qk_norm": "rmsnorm"}},
    ],
    "position": {"kind": "learned", "max_length": 32},
    "num_layers": 4,
}
CONTEXT_MESHES = [
    {"context": 8},
    {"context": 4, "tensor": 2, "context_kind": "ulysses"},
    {"data": 2, "fsdp": 2, "context": 2, "context_kind": "all_gather"},
]
WIDE_CONTEXT_MESHES = [
    {**dict(zip(("data", "fsdp", "context", "tensor"), sizes, strict=True)), "context_kind": kind}
    for sizes in itertools.product((1, 2, 4), (1, 2, 4), (2, 4, 8), (1, 2, 4))
    if math.prod(sizes) in (2, 8)
    for kind in ("ring", "all_gather", "ulysses")
]
STAGED_CONTEXT_MESHES = [
    {"stage": 2, "context": 2, "tensor": 2},
    {"stage": 2, "context": 4, "context_kind": "ulysses"},
    {"stage": 2, "fsdp": 2, "context": 2, "context_kind": "all_gather"},
]


@functools.cache
def one_device_with_every_feature():
    return run(make_config(model=CONTEXT_MODEL, length=32))


def check_context(mesh, **train):
    got = run(make_config(model=CONTEXT_MODEL, mesh=mesh, train=train, length=32))
    assert_same(got, one_device_with_every_feature())


@pytest.mark.parametrize("mesh", CONTEXT_MESHES, ids=mesh_name)
def test_same_on_a_split_sequence(mesh):
    check_context(mesh, microbatches=2)


DISTANT_MODEL = {
    "pattern": [
        {
            "mixer": {
                "position": {"kind": "relative", "num_buckets": 8, "max_distance": 12},
                "qk_norm": "rmsnorm_all",
                "chunk": 10,
            }
        },
        {
            "mixer": {
                "position": {"kind": "alibi"},
                "qk_norm": "l2",
                "scale": 0.5,
                "temperature": {"scale": 0.3, "floor": 4},
            }
        },
    ],
    "position": {"kind": "sinusoidal"},
    "num_layers": 4,
    "num_kv_heads": 4,
    "init_std": 0.2,
}


def test_same_with_positions_as_distances():
    """Scores by distance, norms over heads, chunks and fixed positions, where all of them are split."""
    mesh = {"stage": 2, "context": 2, "tensor": 2}
    got, want = (run(make_config(model=DISTANT_MODEL, mesh=mesh, length=32)) for mesh in (mesh, {}))
    assert_same(got, want)
    assert np.abs(got.gradients["stack/0/0/mixer/relative_bias"]).max() > 1e-4


def test_same_with_the_kernel_of_the_tpu_interpreted():
    model = {"pattern": [{}, {"mixer": {"window": 6, "softcap": 3.0, "sinks": True}}]}
    mesh = {"context": 2, "fsdp": 2, "tensor": 2}
    interpreted = make_config(
        model=model, mesh=mesh, runtime={"kernels": {"attention": "interpret"}}
    )
    assert_same(run(interpreted), run(make_config(model=model)))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", WIDE_CONTEXT_MESHES, ids=mesh_name)
def test_same_on_every_split_sequence(mesh):
    check_context(mesh)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", STAGED_CONTEXT_MESHES, ids=mesh_name)
def test_same_on_a_split_sequence_in_stages(mesh):
    check_context(mesh, microbatches=4)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", {"attention_out": "save", "attention_lse": "save"}])
@pytest.mark.parametrize("gather", ["layer", "microbatch", "step"])
def test_same_on_a_split_sequence_with_rematerialisation(gather, remat):
    check_context(
        {"fsdp": 2, "context": 2, "tensor": 2}, gather=gather, remat=remat, microbatches=2
    )


def test_same_evaluation_on_a_split_sequence():
    def sums(mesh):
        config = make_config(model=CONTEXT_MODEL, mesh=mesh, length=32)
        program = build_program(config, jax.devices()[: math.prod(config.mesh.sizes.values())])
        state = create_state(program.state, program.optimizer, program.mesh, seed=0)
        batch = jax.device_put(make_batch(config, 0), batch_sharding(program.mesh))
        return jax.device_get(compile_losses(config, program)(state.decoder, batch))

    got, want = sums({"context": 4, "tensor": 2}), sums({})
    pairs = [[sums.metrics["nats"], sums.weight] for sums in (got, want)]
    np.testing.assert_allclose(*pairs, rtol=1e-5)
    assert got.metrics["target_bytes"] == want.metrics["target_bytes"]
    np.testing.assert_array_equal(got.token_hash, want.token_hash)


MIXERS = st.fixed_dictionaries(
    {
        "kind": st.just("attention"),
        "window": st.sampled_from([None, 5]),
        "softcap": st.sampled_from([None, 2.0]),
        "sinks": st.booleans(),
        "chunk": st.sampled_from([None, 6]),
        "scale": st.sampled_from([None, 0.4]),
        "qk_norm": st.sampled_from(["none", "rmsnorm", "rmsnorm_all", "l2"]),
        "bias": st.sampled_from(["none", "qkv", "all"]),
    }
)
FFNS = st.fixed_dictionaries(
    {
        "kind": st.just("mlp"),
        "activation": st.sampled_from(["swiglu", "geglu_exact", "relu2", "gelu_tanh"]),
        "bias": st.sampled_from(["none", "all"]),
    }
)
MODELS = st.fixed_dictionaries(
    {
        "pattern": st.lists(
            st.fixed_dictionaries({"mixer": MIXERS, "ffn": FFNS}), min_size=1, max_size=2
        ),
        "num_layers": st.sampled_from([2, 4]),
        "num_kv_heads": st.sampled_from([4, 8]),
        "norm": st.fixed_dictionaries({"kind": st.sampled_from(["rmsnorm", "layernorm"])}),
        "position": st.sampled_from(
            [{"kind": "rope"}, {"kind": "learned", "max_length": 16}, {"kind": "none"}]
        ),
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
            (1, 1, 2, 1, 2, 2),
            (1, 1, 1, 1, 4, 2),
        ]
    ]
)


def check_random(model, mesh, train, loss):
    assert math.prod(mesh.values()) <= 8
    assert_same(
        run(make_config(model=model, mesh=mesh, train=train, objective=loss)),
        run(make_config(model=model, objective=loss)),
    )


LOSSES = st.sampled_from([{}, {"z_loss": 1e-3, "label_smoothing": 0.1}])


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(model=MODELS, mesh=SMALL_MESHES, train=TRAINS, loss=LOSSES)
def test_same_for_random_models(model, mesh, train, loss):
    check_random(model, mesh, train, loss)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=MODELS, mesh=SMALL_MESHES, train=TRAINS, loss=LOSSES)
def test_same_for_many_random_models(model, mesh, train, loss):
    check_random(model, mesh, train, loss)
