"""Rows reach the device of their expert and come back: in any number of rounds, both ways to send,
the collectives.
"""

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
from maxlm.sharding.context import zigzag
from maxlm.sharding.experts import combine, dispatch, in_rounds, make_plan, most_rows, take

NUM_EXPERTS, CHOICES, DIM = 8, 3, 5
FACTORS = np.linspace(1, 2, NUM_EXPERTS, dtype=np.float32)
SPLIT = P("expert", "context")


def on_devices(function, *, expert=1, context=1, num_arrays=2):
    """Run function(factors of this device's experts, *arrays (B, T, ...)) on a mesh."""
    devices = np.asarray(jax.devices()[: expert * context]).reshape(expert, context)
    mesh = Mesh(devices, ("expert", "context"))
    specs = (P("expert"), *[SPLIT] * num_arrays)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=SPLIT))


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


def one_round(rows, inputs, plan, number):
    """Multiply each copy of a token with its expert's factor, at the expert's device."""
    x_ND, factors_E = inputs
    rows_MD = take(x_ND, plan.copy_M // CHOICES, plan.place_NA)
    rows_BD, blocks = dispatch(rows_MD, plan, number, rows)
    ends_E = jnp.cumsum(blocks[1].sizes_PE.sum(axis=0))
    expert_B = (jnp.arange(rows_BD.shape[0])[:, None] >= ends_E).sum(axis=1)
    rows_BD *= factors_E.at[expert_B].get(mode="fill", fill_value=0)[:, None]
    rows_MD = combine(rows_BD, blocks, plan.copy_M.shape[0])
    return take(rows_MD, plan.place_NA.reshape(-1), plan.copy_M[:, None]).reshape(
        *plan.place_NA.shape, DIM
    )


def there_and_back(factors_E, x_BTD, experts_BTA, *, capacity=None, rows=None):
    plan = make_plan(experts_BTA, NUM_EXPERTS, capacity)
    most = most_rows(experts_BTA.shape, NUM_EXPERTS, capacity)
    inputs = (x_BTD.reshape(-1, DIM), lax.pcast(factors_E, "context", to="varying"))
    y = in_rounds(functools.partial(one_round, rows or most), inputs, plan, rows or most, most)
    return y.reshape(*experts_BTA.shape, DIM)


def random_inputs(shape):
    return np.random.default_rng(1).normal(size=(*shape, DIM)).astype(np.float32)


@pytest.mark.parametrize(("num_devices", "rows"), [(1, None), (4, None), (4, 7)])
@pytest.mark.parametrize("capacity", [None, 2])
@pytest.mark.parametrize("kind", ["random", "all the same"])
def test_every_copy_goes_through_its_expert(kind, capacity, num_devices, rows):
    experts_BTA = choices(kind)
    x = random_inputs(experts_BTA.shape[:2])
    run = on_devices(
        functools.partial(there_and_back, capacity=capacity, rows=rows), expert=num_devices
    )

    def plain(factors, x):
        return (
            x[:, :, None] * factors[experts_BTA][..., None] * kept(experts_BTA, capacity)[..., None]
        )

    want = plain(FACTORS, x)
    np.testing.assert_allclose(run(FACTORS, x, experts_BTA), want, rtol=1e-6)
    got = jax.jit(
        jax.grad(lambda *inputs: (run(*inputs, experts_BTA) * want).sum(), argnums=(0, 1))
    )(FACTORS, x)
    reference = jax.grad(lambda *inputs: (plain(*inputs) * want).sum(), argnums=(0, 1))(
        jnp.asarray(FACTORS), x
    )
    for gradient, expected in zip(got, reference, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("expert", "context"), [(1, 2), (2, 4)])
def test_capacity_counts_the_whole_sequence(expert, context):
    experts_BTA = choices("random", rows=4, length=24)
    x = random_inputs(experts_BTA.shape[:2])
    keep = kept(experts_BTA, 5)

    def drops(factors_E, x_BTD, experts_BTA):
        """Return a copy's token where it was kept, devices holding an early and a late chunk."""
        x_BTD, experts_BTA = zigzag(x_BTD), zigzag(experts_BTA)
        return there_and_back(factors_E, x_BTD, experts_BTA, capacity=5)

    got = np.asarray(on_devices(drops, expert=expert, context=context)(FACTORS, x, experts_BTA))
    want = x[:, :, None] * FACTORS[experts_BTA][..., None] * keep[..., None]
    chunks = want.reshape(4, 2 * context, -1, CHOICES, DIM)
    order = [chunk for device in range(context) for chunk in (device, 2 * context - 1 - device)]
    assert 0 < keep.mean() < 1
    np.testing.assert_allclose(got, chunks[:, order].reshape(want.shape), rtol=1e-6)


def emulated(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    """Do what the documentation of `lax.ragged_all_to_all` says, out of all_gathers."""
    everyone = functools.partial(lax.all_gather, axis_name=axis_name)
    me, devices = lax.axis_index(axis_name), lax.axis_size(axis_name)
    mine = [
        everyone(x.reshape(devices, -1))[:, me] for x in (input_offsets, send_sizes, output_offsets)
    ]
    operands = everyone(operand)
    np.testing.assert_equal(recv_sizes.shape, input_offsets.shape)
    for source in range(devices):
        for start, size, offset in zip(*(x[source] for x in mine), strict=True):
            place = jnp.arange(output.shape[0]) - offset
            row = operands[source][jnp.clip(start + place, 0, operand.shape[0] - 1)]
            output = jnp.where(((place >= 0) & (place < size))[:, None], row, output)
    return output


@pytest.mark.parametrize("rows", [7, 60])
@pytest.mark.parametrize("kind", ["random", "all the same"])
def test_ragged_and_padded_give_the_same(kind, rows, monkeypatch):
    monkeypatch.setattr(lax, "ragged_all_to_all", emulated)
    experts_BTA = choices(kind)
    x = random_inputs(experts_BTA.shape[:2])

    def both(factors_E, x, experts_BTA):
        plan = make_plan(experts_BTA, NUM_EXPERTS, None)
        rows_MD = take(x.reshape(-1, DIM), plan.copy_M // CHOICES, plan.place_NA)
        sent, held = experts._blocks(plan, jnp.int32(1), rows)
        ragged = functools.partial(experts.exchange_ragged, zeros=True)
        there = [f(rows_MD, sent, held, rows) for f in (experts.exchange_padded, ragged)]
        back = [f(there[0], held, sent, 36) for f in (experts.exchange_padded, ragged)]
        return jnp.stack([jnp.concatenate(pair)[None] for pair in zip(there, back, strict=True)])

    padded, ragged = (
        on_devices(both, expert=4)(FACTORS, x, experts_BTA).reshape(4, 2, -1).swapaxes(0, 1)
    )
    assert kind == "random" or rows == 60 or np.abs(padded).sum() > 0
    np.testing.assert_array_equal(padded, ragged)


def lowered(platform, rows=None):
    experts_BTA = choices("random")
    x = np.ones((*experts_BTA.shape[:2], DIM), np.float32)
    run = on_devices(functools.partial(there_and_back, rows=rows), expert=4)
    gradient = jax.jit(jax.value_and_grad(lambda x: (run(FACTORS, x, experts_BTA) ** 2).sum()))
    return gradient.trace(x).lower(lowering_platforms=(platform,)).as_text()


def test_collectives():
    # 2 of rows in each pass, and the counts gathered; further rounds are 2 and, run again, 4
    one, more = lowered("cpu"), lowered("cpu", rows=40)
    assert [len(re.findall(r"stablehlo\.all_to_all", text)) for text in (one, more)] == [
        4,
        4 + 2 + 4,
    ]
    assert [len(re.findall(r"stablehlo\.all_gather", text)) for text in (one, more)] == [1, 1]


def test_other_platforms_send_only_what_is_there():
    text = lowered("tpu")
    assert len(re.findall(r"stablehlo\.all_to_all", text)) == 0
    assert len(re.findall(r"custom_call @ragged_all_to_all", text)) == 4
