"""What crosses the borders of chunks under `context`, against recurrences token by token, in
float64 on one device.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import MeshConfig
from maxlm.jax_versions import vary_over, varying_axes
from maxlm.sharding import context
from maxlm.sharding.context import own_chunks, split_chunks, zigzag
from maxlm.sharding.mesh import build_mesh
from tests.hlo import collectives, count

LENGTH, HEADS, KEY, VALUE = 64, 16, 3, 5
TOKENS = P(None, "context", "tensor")
MESHES = [{"context": 4, "tensor": 2}, {"context": 8}, {"context": 2}, {"context": 1}]
# Indices of tokens that start a document, a row each. With 8, 4 and 2 devices chunks have 4, 8 and
# 16 tokens.
DOCUMENTS = [
    [0, 4, 16, 32, 48],  # borders on those of chunks
    [20, 21, 47, 48, 63],  # two in a row, also around a border; one that starts at the last token
    [0, 1, 40],
    [],  # the initial state is seen from everywhere
]
# On one device both the whole sequence and any number of chunks may be asked for.
CHUNKS = [*((own_chunks, sizes) for sizes in MESHES), (split_chunks, MESHES[-1])]
STARTS = np.array([[token in row for token in range(LENGTH)] for row in DOCUMENTS])
BATCH = len(DOCUMENTS)


def name(parameter):
    return getattr(parameter, "__name__", str(parameter))


def make_mesh(sizes):
    return build_mesh(MeshConfig(fsdp=1, **sizes), jax.devices()[: math.prod(sizes.values())])


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def from_zigzag(x):
    """Undo `zigzag`: a permutation's inverse is its transpose."""
    return jax.vjp(zigzag, x)[1](x)[0]


def compare(mixer, oracle, mesh_sizes, inputs):
    """Check the result and the gradients of all inputs.

    Args:
      mixer: function of this device's tokens: (*inputs, starts_BT) -> (B, T, heads, ...).
      oracle: the same of whole arrays.
      mesh_sizes: devices along the axes.
      inputs: {name: (array, its layout)}; what is split along `context` is put in zigzag order.
    """
    arrays, specs = zip(*inputs.values(), strict=True)
    layouts = (*specs, P(None, "context"))
    d_out = normal(99, *jax.eval_shape(oracle, *arrays, STARTS).shape)

    def spread(*arrays):
        *arrays, starts = (
            x if spec[0] == "tensor" else zigzag(x) for x, spec in zip(arrays, layouts, strict=True)
        )
        return from_zigzag(mixer(*arrays, starts))

    def value_and_gradients(function, *arrays):
        *arrays, starts, d_out = arrays
        out, pullback = jax.vjp(lambda *primals: function(*primals, starts), *arrays)
        return out, *pullback(d_out.astype(out.dtype))

    mapped = jax.shard_map(
        lambda *arrays: value_and_gradients(spread, *arrays),
        mesh=make_mesh(mesh_sizes),
        in_specs=(*layouts, TOKENS),
        out_specs=(TOKENS, *specs),
    )
    got = jax.jit(mapped)(*arrays, STARTS, d_out)
    with jax.enable_x64(True):
        exact = [array.astype(np.float64) for array in (*arrays, d_out)]
        want = jax.jit(lambda *a: value_and_gradients(oracle, *a))(*exact[:-1], STARTS, exact[-1])
    assert want[0].dtype == np.float64
    for what, one, other in zip(["out", *inputs], got, want, strict=True):
        scale = np.abs(other).max()
        assert scale > 0.01, what
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6 * scale, err_msg=what)


def token_by_token(step, initial, *arrays):
    """Scan over axis 1 of the arrays."""
    _, out = lax.scan(step, initial, tuple(jnp.moveaxis(x, 1, 0) for x in arrays))
    return jnp.moveaxis(out, 0, 1)


# --- a scalar decay a token and head: S = a S + k v^T, out = q S ----------------------------------


def decay_oracle(q, k, v, log_decay, initial, starts):
    def step(state, token):
        q, k, v, log_decay, starts = token
        state = (
            jnp.where(starts[:, None, None, None], 0, state) * jnp.exp(log_decay)[:, :, None, None]
        )
        state += k[..., :, None] * v[..., None, :]
        return state, jnp.einsum("bnk,bnkv->bnv", q, state)

    return token_by_token(
        step, jnp.broadcast_to(initial, (BATCH, *initial.shape)), q, k, v, log_decay, starts
    )


def make_decay_mixer(chunks_of):
    def mixer(q, k, v, log_decay, initial, starts):
        q, k, v, log_decay, starts = map(chunks_of, (q, k, v, log_decay, starts))
        decay, document = jnp.cumsum(log_decay, axis=2), jnp.cumsum(starts, axis=2)
        end = decay[:, :, -1:]
        entered, stays = document == 0, document == document[:, :, -1:]
        sees = (document[:, :, :, None] == document[:, :, None]) & jnp.tri(q.shape[2], dtype=bool)
        between = exp_where(sees[..., None], decay[:, :, :, None] - decay[:, :, None])
        added = jnp.einsum(
            "cbtn,cbtnk,cbtnv->cbnkv", exp_where(stays[..., None], end - decay), k, v
        )
        summary = exp_where(entered[:, :, -1:], end[:, :, 0]), added
        initial = jnp.broadcast_to(initial, summary[1].shape[1:])
        state = context.carry(
            summary, lambda chunk, state: chunk[0][..., None, None] * state + chunk[1], initial
        )
        out = jnp.einsum("cbijn,cbink,cbjnk,cbjnv->cbinv", between, q, k, v)
        out += jnp.einsum("cbtn,cbtnk,cbnkv->cbtnv", exp_where(entered[..., None], decay), q, state)
        return context.join_chunks(out)

    return mixer


def exp_where(mask, x):
    return jnp.exp(jnp.where(mask, x, -jnp.inf))


@pytest.mark.parametrize(("chunks_of", "sizes"), CHUNKS, ids=name)
def test_carry_with_a_decay(chunks_of, sizes):
    shape = (BATCH, LENGTH, HEADS)
    inputs = {
        "q": (normal(0, *shape, KEY), TOKENS),
        "k": (normal(1, *shape, KEY), TOKENS),
        "v": (normal(2, *shape, VALUE), TOKENS),
        "log_decay": (-0.1 * np.abs(normal(3, *shape)), TOKENS),
        "initial": (normal(4, HEADS, KEY, VALUE), P("tensor")),
    }
    compare(make_decay_mixer(chunks_of), decay_oracle, sizes, inputs)


# --- the delta rule: S = a (I - b k k^T) S + b k v^T, out = q S -----------------------------------


def delta_oracle(q, k, v, rate, log_decay, starts):
    def step(state, token):
        q, k, v, rate, log_decay, starts = token
        erased = jnp.eye(KEY) - rate[..., None, None] * k[..., :, None] * k[..., None, :]
        state = jnp.where(
            starts[:, None, None, None], 0, jnp.exp(log_decay)[..., None, None] * erased @ state
        )
        state += rate[..., None, None] * k[..., :, None] * v[..., None, :]
        return state, jnp.einsum("bnk,bnkv->bnv", q, state)

    zeros = jnp.zeros((BATCH, HEADS, KEY, VALUE), q.dtype)
    return token_by_token(step, zeros, q, k, v, rate, log_decay, starts)


def delta_pass(q, k, v, rate, log_decay, starts, state):
    """Go through a chunk; return the state that leaves it, and the result of each token."""

    def step(state, token):
        q, k, v, rate, log_decay, starts = token
        state = jnp.where(
            starts[:, None, None, None], 0, jnp.exp(log_decay)[..., None, None] * state
        )
        known = jnp.einsum("bnk,bnkv->bnv", k, state)
        state += jnp.einsum("bn,bnk,bnv->bnkv", rate, k, v - known)
        return state, jnp.einsum("bnk,bnkv->bnv", q, state)

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, rate, log_decay, starts))
    state, out = lax.scan(step, vary_over(state, varying_axes(*tokens)), tokens)
    return state, jnp.moveaxis(out, 0, 1)


def delta_mixer(q, k, v, rate, log_decay, starts):
    q, k, v, rate, log_decay, starts = map(own_chunks, (q, k, v, rate, log_decay, starts))
    batch, _, heads = rate.shape[1:]
    # A chunk maps S to M S + N. The columns [0 | I] become [N | M] where the last ones are written nothing.
    nothing = jnp.zeros((*k.shape[:-1], KEY), k.dtype)
    columns = jnp.concatenate([jnp.zeros((KEY, VALUE)), jnp.eye(KEY)], axis=1)
    columns = jnp.broadcast_to(columns, (batch, heads, *columns.shape))
    written = jnp.concatenate([v, nothing], axis=-1)
    summary, _ = jax.vmap(lambda *chunk: delta_pass(*chunk, columns))(
        q, k, written, rate, log_decay, starts
    )
    summary = {"matrix": summary[..., VALUE:], "added": summary[..., :VALUE]}
    state = context.carry(
        summary,
        lambda chunk, state: chunk["matrix"] @ state + chunk["added"],
        jnp.zeros((batch, heads, KEY, VALUE)),
    )
    return context.join_chunks(jax.vmap(delta_pass)(q, k, v, rate, log_decay, starts, state)[1])


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_carry_with_a_matrix(sizes):
    shape = (BATCH, LENGTH, HEADS)
    k = normal(11, *shape, KEY)
    inputs = {
        "q": (normal(10, *shape, KEY), TOKENS),
        "k": (k / np.linalg.norm(k, axis=-1, keepdims=True), TOKENS),
        "v": (normal(12, *shape, VALUE), TOKENS),
        "rate": (1 / (1 + np.exp(normal(13, *shape))), TOKENS),
        "log_decay": (-0.1 * np.abs(normal(14, *shape)), TOKENS),
    }
    compare(delta_mixer, delta_oracle, sizes, inputs)


def test_one_device_computes_no_summary():
    sizes, shape = {"context": 1}, (BATCH, LENGTH, HEADS)
    arrays = [
        jax.ShapeDtypeStruct((*shape, *rest), np.float32)
        for rest in ((KEY,), (KEY,), (VALUE,), (), ())
    ]
    mapped = jax.shard_map(
        delta_mixer, mesh=make_mesh(sizes), in_specs=(*(TOKENS,) * 5, P()), out_specs=TOKENS
    )
    text = jax.jit(mapped).lower(*arrays, jax.ShapeDtypeStruct(shape[:2], bool)).compile().as_text()
    assert text.count(" while(") == 1  # of the two passes through the chunk


# --- a state that is no linear function of the one before: h = tanh(w h + x) ----------------------


def nonlinear(x, weight, starts):
    def step(state, token):
        x, starts = token
        state = jnp.tanh(weight * jnp.where(starts[:, None, None], 0, state) + x)
        return state, state

    zeros = vary_over(jnp.zeros((x.shape[0], *x.shape[2:]), x.dtype), varying_axes(x, weight))
    return token_by_token(step, zeros, x, starts)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_whole_and_parts_with_a_nonlinear_state(sizes):
    def mixer(x, weight, starts):
        starts = context.gather_sequence(starts)
        return context.parts(
            nonlinear(context.whole(x, axis=2), context.share(weight, axis=0), starts), axis=2
        )

    inputs = {
        "x": (normal(20, BATCH, LENGTH, HEADS, VALUE), TOKENS),
        "weight": (normal(21, HEADS, VALUE), P("tensor")),
    }
    compare(mixer, nonlinear, sizes, inputs)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("axis", [2, 3])
def test_parts_undoes_whole(axis, sizes):
    devices = sizes["context"]
    places = np.arange(LENGTH, dtype=np.float32)

    def check(x, places):
        mine, everywhere = zigzag(x), context.whole(zigzag(x), axis)
        in_order = context.whole(
            jnp.broadcast_to(zigzag(places)[..., None, None], mine.shape), axis
        )
        right = [
            jnp.all(context.parts(everywhere, axis) == mine),
            jnp.all(in_order == jnp.arange(LENGTH)[:, None, None]),
        ]
        # Device i of `context` has the i-th share of the axis.
        all_of_it = lax.all_gather(everywhere, "context", axis=axis, tiled=True)
        right += [jnp.all(all_of_it == context.gather_sequence(mine))]
        assert everywhere.shape[axis] == mine.shape[axis] // devices
        assert everywhere.shape[1] == LENGTH
        return jnp.stack(right)[None]

    x = normal(22, 2, LENGTH, 8, 8)
    mesh = make_mesh({"context": devices})
    specs = (P(None, "context"),) * 2
    right = jax.jit(jax.shard_map(check, mesh=mesh, in_specs=specs, out_specs=P("context")))(
        x, places[None]
    )
    assert right.shape == (devices, 3)
    assert np.all(right)


# --- a causal convolution over 4 tokens -----------------------------------------------------------

TAPS = 4


def convolution_oracle(x, weight, starts):
    def step(seen, token):
        x, starts = token
        seen = jnp.where(starts[:, None, None, None], 0, seen)
        seen = jnp.concatenate([x[:, :, None], seen[:, :, :-1]], axis=2)
        return seen, jnp.sum(weight * seen, axis=2)

    return token_by_token(step, jnp.zeros((BATCH, HEADS, TAPS, x.shape[-1]), x.dtype), x, starts)


def make_convolution(chunks_of):
    def mixer(x, weight, starts):
        x, starts = chunks_of(x), chunks_of(starts)
        length = x.shape[2]
        x, starts = (jnp.concatenate([context.shift(y, TAPS - 1), y], axis=2) for y in (x, starts))
        document = jnp.cumsum(starts, axis=2)
        out = 0
        for back in range(TAPS):
            seen = slice(TAPS - 1 - back, TAPS - 1 - back + length)
            same = document[:, :, seen] == document[:, :, TAPS - 1 :]
            out += weight[:, back] * jnp.where(same[..., None, None], x[:, :, seen], 0)
        return context.join_chunks(out)

    return mixer


@pytest.mark.parametrize(("chunks_of", "sizes"), CHUNKS, ids=name)
def test_shift_with_a_convolution(chunks_of, sizes):
    inputs = {
        "x": (normal(30, BATCH, LENGTH, HEADS, 2), TOKENS),
        "weight": (normal(31, HEADS, TAPS, 2), P("tensor")),
    }
    compare(make_convolution(chunks_of), convolution_oracle, sizes, inputs)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_shift_gives_the_end_of_the_chunk_before(devices, width):
    places = np.arange(1, 8 * devices + 1, dtype=np.float32)[None]

    def shifted(x):
        return context.join_chunks(context.shift(split_chunks(zigzag(x)), width))

    mesh, spec = make_mesh({"context": devices}), P(None, "context")
    got = jax.jit(jax.shard_map(shifted, mesh=mesh, in_specs=spec, out_specs=spec))(places)
    ends = np.concatenate([np.zeros((1, width)), places.reshape(-1, 4)[:-1, 4 - width :]])
    chunks = [chunk for device in range(devices) for chunk in (device, 2 * devices - 1 - device)]
    np.testing.assert_array_equal(got.reshape(-1, width), ends[chunks])


@pytest.mark.parametrize("width", [0, 5])
def test_shift_refuses_more_tokens_than_a_chunk_has(width):
    spec = P(None, "context")
    shifted = jax.shard_map(
        lambda x: context.shift(split_chunks(x), width),
        mesh=make_mesh({"context": 2}),
        in_specs=spec,
        out_specs=P(None, None, "context"),
    )
    with pytest.raises(ValueError, match=f"chunks of 4 tokens.*not {width}"):
        shifted(np.zeros((1, 16), np.float32))


# --- collectives ----------------------------------------------------------------------------------


def per_pass(function, *shapes, sizes=MESHES[0]):
    """Return the collectives of a function of this device's (B, T, ...) forward, and those with its
    gradients.
    """
    mesh = make_mesh(sizes)

    def gradients(*arrays):
        out, pullback = jax.vjp(function, *arrays)
        return out, *pullback(jnp.cos(out))

    arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    specs = (TOKENS,) * len(arrays)
    found = []
    for program, out_specs in ((function, TOKENS), (gradients, (TOKENS, *specs))):
        mapped = jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=out_specs)
        found.append(collectives(jax.jit(mapped).lower(*arrays).compile(), mesh))
    return found


def test_carry_is_one_all_gather_and_one_reduce_scatter():
    def mixer(x, y):
        x, y = split_chunks(x), split_chunks(y)
        summary = jnp.mean(x, axis=2), jnp.einsum("cbtnk,cbtnv->cbnkv", x, y)
        state = context.carry(
            summary,
            lambda chunk, state: chunk[0][..., None] * state + chunk[1],
            jnp.zeros(summary[1].shape[1:]),
        )
        return context.join_chunks(jnp.einsum("cbtnk,cbnkv->cbtnv", x, state))

    forward, both = per_pass(mixer, (BATCH, LENGTH, HEADS, KEY), (BATCH, LENGTH, HEADS, VALUE))
    packed = 4 * BATCH * HEADS // 2 * (KEY + KEY * VALUE)  # bytes of a chunk
    assert [(c.kind, c.axes, c.bytes) for c in forward] == [
        ("all-gather", ("context",), 8 * packed)
    ]
    scattered = ("reduce-scatter", ("context",), 2 * packed)
    assert [(c.kind, c.axes, c.bytes) for c in both] == [
        ("all-gather", ("context",), 8 * packed),
        scattered,
    ]


def test_shift_is_two_permutes():
    def mixer(x):
        x = split_chunks(x)
        return context.join_chunks(x.at[:, :, :3].add(context.shift(x, 3)))

    passes = per_pass(mixer, (BATCH, LENGTH, HEADS, 2))
    for found, times in zip(passes, (2, 4), strict=True):
        assert {(c.kind, c.axes) for c in found} == {("collective-permute", ("context",))}
        assert count(found, bytes=4 * BATCH * 3 * HEADS // 2 * 2) == count(found) == times


def test_whole_and_parts_are_one_exchange_each():
    def mixer(x):
        return context.parts(jnp.cumsum(context.whole(x, axis=2), axis=1), axis=2)

    passes = per_pass(mixer, (BATCH, LENGTH, HEADS, 2))
    for found, times in zip(passes, (2, 4), strict=True):
        assert {(c.kind, c.axes) for c in found} == {("all-to-all", ("context",))}
        assert count(found) == times
