"""Rows reach the device of their expert and come back: the layout, both ways to send, and the collectives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from maxlm.sharding import experts
from maxlm.sharding.experts import combine, dispatch, make_plan, take

NUM_EXPERTS, CHOICES, DIM = 8, 3, 5
SPLIT = P("expert")


def on_devices(num_devices, function):
    mesh = Mesh(np.asarray(jax.devices()[:num_devices]), ("expert",))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=SPLIT, out_specs=SPLIT))


def choices(kind, rows=8, length=6):
    rng = np.random.default_rng(0)
    if kind == "all the same":
        return np.broadcast_to(np.arange(CHOICES, dtype=np.int32), (rows, length, CHOICES))
    scores = rng.random((rows, length, NUM_EXPERTS))
    return np.argsort(scores, axis=2)[:, :, :CHOICES].astype(np.int32)


def kept(experts_BTA, capacity):
    """Return which copies have room, by going through them."""
    keep = np.zeros(experts_BTA.shape, bool)
    for row, sequence in enumerate(experts_BTA):
        used = np.zeros(NUM_EXPERTS, int)
        for place in np.ndindex(sequence.shape):
            keep[(row, *place)] = capacity is None or used[sequence[place]] < capacity
            used[sequence[place]] += 1
    return keep


def there_and_back(x_BTD, experts_BTA, capacity):
    """Multiply each copy with its expert's number + 1 at the expert's device."""
    plan = make_plan(experts_BTA, NUM_EXPERTS, capacity)
    rows, arrived = dispatch(take(x_BTD.reshape(-1, DIM), plan.copy_S // CHOICES, plan.slot_NA), plan)
    local = arrived.sizes_E.shape[0]
    ends = jnp.cumsum(arrived.sizes_E)
    expert = (jnp.arange(rows.shape[0])[:, None] >= ends).sum(axis=1) + lax.axis_index("expert") * local
    rows = combine(rows * (expert[:, None] + 1), arrived)
    return take(rows, plan.slot_NA.reshape(-1), plan.copy_S[:, None]).reshape(*experts_BTA.shape, DIM)


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("capacity", [None, 2])
@pytest.mark.parametrize("kind", ["random", "all the same"])
def test_every_copy_goes_through_its_expert(kind, capacity, num_devices):
    experts_BTA = choices(kind)
    x = np.random.default_rng(1).normal(size=(*experts_BTA.shape[:2], DIM)).astype(np.float32)
    run = on_devices(num_devices, functools.partial(there_and_back, capacity=capacity))
    want = x[:, :, None] * (experts_BTA[..., None] + 1) * kept(experts_BTA, capacity)[..., None]
    np.testing.assert_allclose(run(x, experts_BTA), want, rtol=1e-6)
    # linear: its gradient at any direction is the same factor
    gradient = jax.grad(lambda x: (run(x, experts_BTA) * want).sum())(x)
    factor = (experts_BTA[..., None] + 1) * kept(experts_BTA, capacity)[..., None]
    np.testing.assert_allclose(gradient, (want * factor).sum(axis=2), rtol=1e-5)


def emulated(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """Do what the documentation of `lax.ragged_all_to_all` says, out of all_gathers."""
    everyone = functools.partial(lax.all_gather, axis_name=axis_name)
    me = lax.axis_index(axis_name)
    operands, starts = everyone(operand), everyone(input_offsets)[:, me]
    sizes, offsets = everyone(send_sizes)[:, me], everyone(output_offsets)[:, me]
    for source in range(operands.shape[0]):
        place = jnp.arange(output.shape[0]) - offsets[source]
        row = operands[source][jnp.clip(starts[source] + place, 0, operand.shape[0] - 1)]
        output = jnp.where(((place >= 0) & (place < sizes[source]))[:, None], row, output)
    return output


@pytest.mark.parametrize("kind", ["random", "all the same"])
def test_ragged_and_padded_give_the_same(kind, monkeypatch):
    monkeypatch.setattr(lax, "ragged_all_to_all", emulated)
    experts_BTA = choices(kind)
    x = np.random.default_rng(1).normal(size=(*experts_BTA.shape[:2], DIM)).astype(np.float32)

    def both(x, experts_BTA):
        plan = make_plan(experts_BTA, NUM_EXPERTS, None)
        rows = take(x.reshape(-1, DIM), plan.copy_S // CHOICES, plan.slot_NA)
        sent = plan.counts_PE.sum(axis=1)
        received = lax.all_to_all(sent, "expert", 0, 0, tiled=True)
        return experts.exchange_padded(rows, sent, received), experts.exchange_ragged(rows, sent, received)

    padded, ragged = on_devices(4, both)(x, experts_BTA)
    assert np.abs(padded).sum() > 0
    np.testing.assert_array_equal(padded, ragged)


def lowered(platform):
    experts_BTA = choices("random")
    x = np.ones((*experts_BTA.shape[:2], DIM), np.float32)
    run = on_devices(4, functools.partial(there_and_back, capacity=None))
    gradient = jax.jit(jax.value_and_grad(lambda x: (run(x, experts_BTA) ** 2).sum()))
    return gradient.trace(x).lower(lowering_platforms=(platform,)).as_text()


def test_collectives():
    # 2 of rows in each pass, and one of counts
    assert len(re.findall(r"stablehlo\.all_to_all", lowered("cpu"))) == 5


def test_other_platforms_send_only_what_is_there():
    text = lowered("tpu")
    assert len(re.findall(r"stablehlo\.all_to_all", text)) == 1
    assert len(re.findall(r"custom_call @ragged_all_to_all", text)) == 4
