"""The mixture of experts against a plain one, in which every token goes through every expert."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from maxlm.config.layers.moe import MoeConfig
from maxlm.config.model import ModelConfig
from maxlm.config.schema import MeshConfig
from maxlm.layers.ffns.moe import (
    Moe,
    RouterStats,
    balance_loss,
    pick,
    rebalanced_bias,
    router_metrics,
)
from maxlm.layers.sequence import SequenceInfo
from maxlm.ops import grouped_matmul
from maxlm.sharding.fsdp import gather, vary
from maxlm.sharding.mesh import AXES, BATCH_AXES, TOKEN_AXES, build_mesh
from maxlm.sharding.parameters import initialise, map_parameters, partition_specs, role_of
from tests.sharding.test_experts import emulated
from tests.small_models import model_settings

MODEL = ModelConfig.model_validate(
    model_settings(vocab_size=8, num_layers=1, embed_dim=16, init_std=0.5)
)
ROWS, LENGTH = 8, 8
PARTS = ("up", "gate", "down")
KINDS = {
    "softmax": {"shared_dim": 8, "balance": {"z_loss": 0.1}},
    "groups": {
        "router": {"kind": "sigmoid", "num_groups": 4, "top_groups": 2, "scale": 2.5},
        "balance": {"bias_update": 0.1},
    },
    "one on the input": {
        "experts_per_token": 1,
        "router": {"kind": "sigmoid", "weights": "as_scored", "apply_to": "input"},
        "activation": "relu",
    },
    "capacity": {"capacity_factor": 0.75, "router": {"weights": "as_scored"}},
    "biases": {
        "bias": "all",
        "activation": "swiglu_clamped",
        "router": {"bias": True},
        "balance": {"z_loss": 0.1},
        "buffer_factor": 0.5,
    },
    "gated shared expert": {
        "shared_dim": 8,
        "shared_gate": True,
        "router": {"weights": "as_scored", "num_groups": 4, "top_groups": 2, "group_score": "max"},
    },
}


def make_config(**changes):
    return MoeConfig.model_validate(
        {"num_experts": 8, "experts_per_token": 2, "expert_dim": 8, **changes}
    )


def build(config, **sizes):
    """Return (module with values, run(module, x) -> (y, balance loss, statistics)) on a mesh."""
    sizes = MeshConfig(**{"fsdp": 1, **sizes})
    mesh = build_mesh(sizes, jax.devices()[: math.prod(sizes.sizes.values())])
    declared = Moe(MODEL, config)
    specs, layout = partition_specs(declared), P(BATCH_AXES, "tensor")

    def program(moe, x):
        real = jax.lax.pcast(jnp.ones((x.shape[0], LENGTH), jnp.int32), AXES, to="varying")
        # A router asks for nothing but what is real, and the way in and out.
        info = SequenceInfo(None, real, None, 0, {})
        y, stats = gather(vary(moe))(
            jax.lax.pcast(x, ("stage", "context", "data")[:2], to="varying"), info
        )
        stacked = jax.tree.map(lambda value: value[None], stats)
        loss = jax.lax.psum(balance_loss(stacked, config), TOKEN_AXES)
        sums = jax.tree.map(lambda value: jax.lax.psum(value, AXES), stacked)
        return y, jax.lax.psum(loss, "stage"), sums

    results = (P((*BATCH_AXES, "stage", "context"), "tensor"), P(), P())
    run = jax.jit(jax.shard_map(program, mesh=mesh, in_specs=(specs, layout), out_specs=results))
    return initialise(declared, 0, mesh), run


def scores_of(weights, x, config):
    logits = jnp.matmul(x, weights["router"], precision="highest")
    logits += weights.get("router_linear_bias", 0)
    return logits, jax.nn.softmax(logits) if config.router.kind == "softmax" else jax.nn.sigmoid(
        logits
    )


def reference(weights, x, config, chosen, keep=None):
    """Return (y, balance loss), with a loop over experts; `weights` are plain arrays by name."""
    logits, scores = scores_of(weights, x, config)
    gate = jnp.where(chosen, scores, 0)
    if config.router.weights == "normalised":
        gate = gate / gate.sum(-1, keepdims=True)
    gate *= config.router.scale
    y = jnp.zeros_like(x)
    for expert in range(config.num_experts):
        scale = gate[..., expert, None] * (1 if keep is None else keep[..., expert, None])
        on_input = config.router.apply_to == "input"
        bias = {
            name: weights[f"{name}_bias"][expert] if config.bias == "all" else 0 for name in PARTS
        }
        hidden = (x * scale if on_input else x) @ weights["up"][expert] + bias["up"]
        if "gate" not in weights:
            hidden = jax.nn.relu(hidden)
        else:
            opened = (x * scale if on_input else x) @ weights["gate"][expert] + bias["gate"]
            if config.activation == "swiglu_clamped":
                opened, hidden = jnp.minimum(opened, 7), jnp.maximum(jnp.minimum(hidden, 7), -7)
                hidden = opened / (1 + jnp.exp(-1.702 * opened)) * (hidden + 1)
            else:
                hidden *= jax.nn.silu(opened)
        y += (hidden @ weights["down"][expert] + bias["down"]) * (1 if on_input else scale)
    if config.shared_dim:
        hidden = jax.nn.silu(x @ weights["shared/gate"]) * (x @ weights["shared/up"])
        factor = jax.nn.sigmoid(x @ weights["shared_gate"])[..., None] if config.shared_gate else 1
        y += hidden @ weights["shared/down"] * factor
    share = (scores / scores.sum(-1, keepdims=True)).mean((0, 1))
    load = chosen.mean((0, 1)) / config.experts_per_token
    z = (jax.nn.logsumexp(logits, axis=-1) ** 2).mean()
    auxiliary = config.num_experts * (load * share).sum()
    return y, config.balance.auxiliary_loss * auxiliary + config.balance.z_loss * z


def chosen_experts(weights, x, config):
    """Return which experts each token picks, token by token."""
    scores = np.asarray(scores_of(weights, x, config)[1] + weights.get("router_bias", 0))
    chosen = np.zeros(scores.shape, bool)
    router = config.router
    for token in np.ndindex(scores.shape[:-1]):
        own = scores[token].copy()
        groups = own.reshape(router.num_groups, -1)
        if router.top_groups < router.num_groups:
            best = groups.max(axis=1)
            if router.group_score == "top2":
                best += np.sort(groups, axis=1)[:, -2]
            worst = np.argsort(best)[: -router.top_groups]
            groups[worst] = -np.inf
        chosen[token][np.argsort(own)[-config.experts_per_token :]] = True
    return chosen


def named(module):
    leaves = jax.tree_util.tree_leaves_with_path(module)
    names = (
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        for path, _ in leaves
    )
    return dict(zip(names, (np.asarray(leaf) for _, leaf in leaves), strict=True))


def with_bias(parameter):
    """Return what starts at zero with values that matter: some pass a clamp at 7."""
    value, role = parameter[...], role_of(parameter)
    if role not in ("bias", "state"):
        return parameter
    drawn = np.random.default_rng(value.shape).normal(size=value.shape)
    drawn = (
        0.1 * np.arange(value.size) if role == "state" else drawn * (4 if value.ndim > 1 else 0.3)
    )
    return parameter.replace(jax.device_put(drawn.astype(np.float32), value.sharding))


def inputs():
    return jnp.asarray(
        np.random.default_rng(0).normal(size=(ROWS, LENGTH, MODEL.embed_dim)), jnp.float32
    )


def has_room(chosen, config):
    """Return which (token, expert) pairs have room: the first ones of each sequence."""
    capacity = int(
        np.ceil(config.capacity_factor * LENGTH * config.experts_per_token / config.num_experts)
    )
    return np.cumsum(chosen, axis=1) <= capacity


def close(array, reference, name=""):
    """Compare to fp32 rounding, relative to the largest element."""
    np.testing.assert_allclose(
        array, reference, rtol=0, atol=1e-5 * np.abs(reference).max(), err_msg=name
    )


ONE, EIGHT = {}, {"expert": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        ("softmax", ONE),
        ("one on the input", ONE),
        ("biases", ONE),
        ("softmax", EIGHT),
        ("one on the input", EIGHT),
        ("groups", EIGHT),
        ("capacity", EIGHT),
        ("biases", EIGHT),
        ("gated shared expert", EIGHT),
    ],
)
def test_values_gradients_and_losses(kind, mesh):
    config = make_config(**KINDS[kind])
    module, run = build(config, **mesh)
    module = map_parameters(with_bias, module)
    x, weights = inputs(), named(module)
    chosen = chosen_experts(weights, x, config)
    keep = has_room(chosen, config) if config.capacity_factor else None
    direction = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)

    def ours(module, x):
        y, loss, stats = run(module, x)
        return (y * direction).sum() + loss, (y, loss, stats)

    def plain(weights, x):
        y, loss = reference(weights, x, config, chosen, keep)
        return (y * direction).sum() + loss, (y, loss)

    (_, (y, loss, stats)), got = jax.jit(jax.value_and_grad(ours, argnums=(0, 1), has_aux=True))(
        module, x
    )
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda array: np.asarray(array, np.float64), (weights, x))
        (_, (want_y, want_loss)), want = jax.jit(
            jax.value_and_grad(plain, argnums=(0, 1), has_aux=True)
        )(*wide)
    close(y, want_y)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
    close(got[1], want[1])
    gradients = named(got[0])
    assert gradients.keys() == want[0].keys()
    for name, gradient in want[0].items():
        close(gradients[name], gradient, name)
    dropped = 0 if keep is None else (chosen & ~keep).sum()
    assert (keep is None) == (dropped == 0)
    assert stats.dropped == dropped
    assert stats.load_E.sum() == ROWS * LENGTH * config.experts_per_token


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        ("softmax", {"expert": 4}),
        ("biases", {"expert": 4}),  # in several rounds
        ("one on the input", {"expert": 4}),
        ("capacity", ONE),
    ],
)
def test_what_lies_where_no_rows_are_is_not_read(kind, mesh, monkeypatch):
    """As a TPU runs it, which leaves that memory as it is, and whose products leave anything there."""
    config = make_config(**KINDS[kind])
    direction = inputs()[::-1]

    def results():
        module, run = build(config, **mesh)
        module = map_parameters(with_bias, module)
        loss = jax.value_and_grad(lambda m, x: (run(m, x)[0] * direction).sum(), argnums=(0, 1))
        value, (of_module, of_x) = jax.jit(loss)(module, inputs())
        return {"loss": value, "x": of_x, **named(of_module)}

    want, product, rooms = results(), grouped_matmul.ragged, []

    def empty(shape, dtype):
        rooms.append(shape)
        return jnp.full(shape, jnp.nan, dtype)

    def ragged(x, w, sizes):
        return jnp.where((jnp.arange(len(x)) < sizes.sum())[:, None], product(x, w, sizes), jnp.nan)

    monkeypatch.setattr(lax, "empty", empty)
    monkeypatch.setattr(lax, "ragged_all_to_all", emulated)
    monkeypatch.setattr(grouped_matmul, "ragged", ragged)
    monkeypatch.setattr(
        lax,
        "platform_dependent",
        lambda *args, tpu=None, default=None, **_: (tpu or default)(*args),
    )
    got = results()
    assert bool(rooms) == (mesh != ONE)
    for name, array in want.items():
        close(got[name], array, name)


def test_dropless_when_all_tokens_want_the_same_experts():
    config = make_config()
    module, run = build(config, expert=4)
    x = jnp.abs(inputs())
    rigged = jnp.zeros((MODEL.embed_dim, 8)).at[:, 5].set(1.0).at[:, 4].set(0.5)
    module.router = module.router.replace(jax.device_put(rigged, module.router[...].sharding))
    y, _, stats = run(module, x)
    weights = named(module)
    np.testing.assert_allclose(
        y, reference(weights, x, config, chosen_experts(weights, x, config))[0], atol=2e-5
    )
    assert stats.dropped == 0
    assert stats.load_E.tolist() == [[0, 0, 0, 0, 64, 64, 0, 0]]


def test_the_bias_picks_but_does_not_weigh():
    config = make_config().router
    scores = jnp.asarray([[[0.4, 0.3, 0.2, 0.1]]])
    weights, experts = pick(scores, jnp.asarray([0.0, -1.0, 0.0, 0.5]), 2, config)
    assert sorted(experts.ravel().tolist()) == [0, 3]
    by_expert = dict(zip(experts.ravel().tolist(), weights.ravel().tolist(), strict=True))
    assert by_expert == pytest.approx({0: 0.8, 3: 0.2})


def test_bias_moves_against_the_load():
    config = make_config(balance={"bias_update": 0.5})
    bias = rebalanced_bias(jnp.zeros((1, 4)), jnp.asarray([[8.0, 4.0, 0.0, 4.0]]), config)
    assert bias.tolist() == [[-0.5, 0.0, 0.5, 0.0]]


def test_metrics_of_an_even_and_of_a_one_sided_router():
    config = make_config()
    even, one_sided = jnp.full((8,), 2.0), jnp.zeros((8,)).at[:2].set(8.0)
    stats = RouterStats(
        load_E=jnp.stack([even, one_sided]),
        score_E=jnp.stack([even / 2, one_sided / 2]),
        log_z_squared=jnp.zeros(2),
        entropy=jnp.asarray([8 * np.log(8), 8 * np.log(2)]),
        dropped=jnp.asarray([0.0, 4.0]),
    )
    metrics = router_metrics(stats, jnp.asarray([[0.0] * 8, [3.0, 4.0] + [0.0] * 6]), config)
    want = {
        "load_max": [1, 4],
        "balance": [1, 4],
        "entropy": [np.log(8), np.log(2)],
        "dropped": [0, 0.25],
    }
    for name, values in {**want, "bias_norm": [0, 5]}.items():
        np.testing.assert_allclose(metrics[name], values, rtol=1e-6, err_msg=name)


def test_what_a_coefficient_of_another_library_is_worth():
    """In transformers f sums to k: its coefficient c is c k here, for one layer (of several it
    pools the tokens).
    """
    rng = np.random.default_rng(0)
    tokens, experts, k, c = 50, 8, 3, 0.02
    logits = rng.normal(size=(tokens, experts))
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.argsort(-scores, axis=-1)[:, :k]
    one_hot = (chosen[..., None] == np.arange(experts)).astype(float)  # (tokens, k, experts)
    theirs = c * experts * (one_hot.mean(axis=0) * scores.mean(axis=0)).sum()
    config = make_config(
        num_experts=experts, experts_per_token=k, balance={"auxiliary_loss": c * k}
    )
    zero = jnp.zeros((1,))
    stats = RouterStats(
        jnp.asarray(one_hot.sum((0, 1)))[None], jnp.asarray(scores.sum(0))[None], zero, zero, zero
    )
    mesh = build_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    spread = lambda stats: jax.tree.map(lambda x: jax.lax.pcast(x, AXES, to="varying"), stats)  # noqa: E731
    run = jax.shard_map(
        lambda stats: jax.lax.psum(balance_loss(spread(stats), config), (*TOKEN_AXES, "stage")),
        mesh=mesh,
        in_specs=P(),
        out_specs=P(),
    )
    np.testing.assert_allclose(run(stats), theirs, rtol=1e-5)


def test_filling_counts_as_no_token():
    config = make_config()
    module, _ = build(config)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 16)), jnp.float32)
    real = jnp.arange(8)[None] < jnp.asarray([[8], [3]])
    _, _, whole = module.route(x[:, :3], jnp.ones((2, 3), bool))
    _, _, rest = module.route(x[:1, 3:], jnp.ones((1, 5), bool))
    _, _, masked = module.route(x, real)
    for got, one, other in zip(masked, whole, rest, strict=True):
        np.testing.assert_allclose(got, one + other, rtol=1e-5)
