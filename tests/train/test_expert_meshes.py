"""Mixtures of experts: losses, gradients, balance and token hash do not depend on the mesh, nor on
the gathering.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxlm.layers.ffns.moe import RouterStats
from maxlm.models.decoder import Decoder
from maxlm.sharding.parameters import map_parameters, with_value
from maxlm.train.loss.gradients import Sums
from maxlm.train.state import TrainState
from maxlm.train.step import make_train_step
from tests.train.program import assert_same, make_config, run

MOE = {
    "kind": "moe",
    "num_experts": 8,
    "experts_per_token": 2,
    "expert_dim": 16,
    "shared_dim": 16,
    "router": {"kind": "sigmoid", "num_groups": 4, "top_groups": 2, "scale": 2.0},
    "balance": {"auxiliary_loss": 0.1, "z_loss": 0.01, "bias_update": 0.01},
}
DENSE = {"ffn": {"kind": "mlp"}}
MODEL = {"num_layers": 3, "prefix": [DENSE], "pattern": [{"ffn": MOE}]}
CAPACITY = {**MODEL, "pattern": [{"ffn": {**MOE, "capacity_factor": 0.75}}]}


def little_room(model):
    """Return the model with room for a quarter of an even load, so that its experts work in many
    rounds.
    """
    return {**model, "pattern": [{"ffn": {**model["pattern"][0]["ffn"], "buffer_factor": 0.25}}]}


@functools.cache
def one_device(*, capacity=False, microbatches=2):
    model = CAPACITY if capacity else MODEL
    return run(make_config(model=model, train={"microbatches": microbatches}))


def name(mesh):
    return "_".join(f"{axis}{size}" for axis, size in mesh.items())


@pytest.mark.parametrize(
    ("mesh", "gather", "model"),
    [
        ({"expert": 4}, "layer", MODEL),
        ({"expert": 2, "fsdp": 2, "tensor": 2}, "microbatch", little_room(MODEL)),
        ({"data": 2, "expert": 2}, "step", MODEL),
    ],
)
def test_same_on_every_mesh(mesh, gather, model):
    result = run(make_config(model=model, mesh=mesh, train={"gather": gather, "microbatches": 2}))
    assert_same(result, one_device())
    assert np.abs(result.gradients["stack/1/0/ffn/router"]).max() > 0
    assert not result.gradients["stack/1/0/ffn/router_bias"].any()


MESHES = [
    {"expert": 2},
    {"expert": 8},
    {"expert": 2, "tensor": 4},
    {"fsdp": 2, "expert": 4},
    {"tensor": 4},
    {"fsdp": 8},
]


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [False, True])
@pytest.mark.parametrize("gather", ["layer", "microbatch", "step"])
@pytest.mark.parametrize("mesh", [*MESHES, {"data": 2, "expert": 2, "tensor": 2}], ids=name)
def test_same_on_many_meshes(mesh, gather, capacity):
    config = make_config(
        model=CAPACITY if capacity else MODEL,
        mesh=mesh,
        train={"gather": gather, "microbatches": 2},
    )
    assert_same(run(config), one_device(capacity=capacity))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", {"mlp_hidden": "save", "attention_out": "offload"}])
@pytest.mark.parametrize("model", [MODEL, little_room(MODEL)], ids=["one_round", "rounds"])
def test_same_with_rematerialisation(remat, model):
    train = {"remat": remat, "microbatches": 2}
    assert_same(
        run(make_config(model=model, mesh={"expert": 2, "fsdp": 2}, train=train)), one_device()
    )


def test_same_where_capacity_meets_a_split_sequence():
    model = little_room(CAPACITY)
    assert_same(
        run(make_config(model=model, mesh={"expert": 2, "context": 4})),
        one_device(capacity=True, microbatches=1),
    )


@pytest.mark.slow
def test_microbatches_are_balanced_each_for_itself():
    one, two = one_device(microbatches=1), one_device(microbatches=2)
    without = {
        **MODEL,
        "pattern": [{"ffn": {**MOE, "balance": {"auxiliary_loss": 0.0, "z_loss": 0.01}}}],
    }
    plain = [run(make_config(model=without, train={"microbatches": count})) for count in (1, 2)]
    assert_same(plain[1], plain[0])  # but for the auxiliary loss, microbatches do not matter
    assert 0 < abs(one.losses[0] - two.losses[0]) < 0.01


# --- the bias is state ----------------------------------------------------------------------------


def stepped(loss):
    """Return the state after one step of an optimizer that moves every parameter, and what it
    reports.
    """
    config = make_config(model=MODEL)
    decoder = map_parameters(
        lambda p: with_value(p, jnp.ones(p.get_value().shape)), Decoder(config.model)
    )
    loads = jnp.asarray([[5.0, 3, 4, 4, 4, 4, 4, 4], [4.0] * 8])

    def gradients(decoder, batch, carried):
        zero = jnp.zeros((2,))
        reports = [[{}], [{"ffn": RouterStats(loads, loads, zero, zero, zero)}]]
        return decoder, Sums(loss, loss, {}, jnp.zeros((2,), jnp.uint32), reports, carried)

    optimizer = optax.sgd(-1.0)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(
        zero, decoder, optimizer.init(decoder), jnp.zeros((2,), jnp.uint32), zero, zero, []
    )
    return jax.jit(make_train_step(gradients, optimizer, lambda step: 0.1))(state, {})


def test_the_step_moves_the_bias_by_the_load_alone():
    state, metrics = stepped(jnp.float32(1))
    moved = np.asarray(state.decoder.stack[1][0].ffn.router_bias[...])
    np.testing.assert_allclose(moved, [[0.99, 1.01] + [1.0] * 6, [1.0] * 8], rtol=1e-6)
    assert state.decoder.stack[1][0].ffn.router[...].max() < 1
    np.testing.assert_allclose(metrics.layers["1/0"]["moe/load_max"], [1.25, 1.0])


def test_a_skipped_step_leaves_the_bias():
    state, _ = stepped(jnp.float32(np.nan))
    assert (np.asarray(state.decoder.stack[1][0].ffn.router_bias[...]) == 1).all()
    assert state.skipped == 1
