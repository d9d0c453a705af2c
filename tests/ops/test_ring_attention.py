"""Attention over a split sequence against the same attention over the whole one: values and
gradients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import MeshConfig
from maxlm.jax_versions import vary_over
from maxlm.kernels.mask import causal, with_least
from maxlm.ops.attention import CHUNKED, attention
from maxlm.ops.context_attention import KINDS, context_attention
from maxlm.sharding.context import (
    chunk_numbers,
    in_order,
    places,
    split_chunks,
    zigzag,
    zigzag_order,
)
from maxlm.sharding.mesh import build_mesh
from tests.kernels.oracle import MASKS, attention_fp64, make_scoring, place_mask, relative_error

SEQUENCE = P(None, "context")


def on_devices(function, devices, in_specs, out_specs=SEQUENCE):
    """Run a function of (B, T, ...) arrays on as many devices, each with its part of the sequence."""
    mesh = build_mesh(MeshConfig(fsdp=1, context=devices), jax.devices()[:devices])
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs))


def from_zigzag(x):
    """Undo `zigzag`: a permutation's inverse is its transpose."""
    return jax.vjp(zigzag, x)[1](x)[0]


def make_inputs(seed, *, batch=2, length=32, heads=4, kv_heads=4, head_dim=8, v_dim=8, documents=3):
    """Return q, k, v, sinks, d_out, segments."""
    rng = np.random.default_rng(seed)
    shapes = [(heads, head_dim), (kv_heads, head_dim), (kv_heads, v_dim), (heads, v_dim)]
    q, k, v, d_out = (
        rng.normal(size=(batch, length, *shape)).astype(np.float32) for shape in shapes
    )
    segments = np.sort(rng.integers(1, documents + 1, (batch, length)), axis=1).astype(np.int32)
    return q, k, v, rng.normal(size=heads).astype(np.float32), d_out, segments


def compare(kind, devices, inputs, *, mask=None, causal=True, window=None, sinks=False, **how):
    """Check out and all gradients on several devices against one device."""
    *inputs, segments = inputs
    scoring = make_scoring(inputs[0].shape[2], **how)
    index = np.arange(segments.shape[1])
    mask = mask or place_mask(segments, segments, index, index, causal=causal, window=window)

    def whole(q, k, v, sink, scoring, mask):
        return attention(q, k, v, mask, sink if sinks else None, CHUNKED, scoring)

    def spread(q, k, v, sink, scoring, mask):
        q, k, v, mask = jax.tree.map(zigzag, (q, k, v, mask))
        # As parameters are, once they are gathered.
        sink, scoring = jax.tree.map(lambda x: vary_over(x, ("context",)), (sink, scoring))
        sink = sink if sinks else None
        how = {"kernel": CHUNKED, "kind": kind, "scoring": scoring}
        return from_zigzag(context_attention(q, k, v, mask, sink, **how))

    def value_and_gradients(attend, q, k, v, sink, scoring, d_out, mask):
        out, pullback = jax.vjp(lambda *primals: attend(*primals, mask), q, k, v, sink, scoring)
        *gradients, d_scoring = pullback(d_out)
        return out, *gradients, d_scoring

    spread = functools.partial(value_and_gradients, spread)
    *inputs, d_out = inputs
    inputs = *inputs, scoring, d_out, mask
    specs = (SEQUENCE,) * 3 + (P(),) * 2 + (SEQUENCE,) * 2
    *got, d_scoring = on_devices(spread, devices, specs, (SEQUENCE,) * 4 + (P(),) * 2)(*inputs)
    *want, d_scoring_whole = jax.jit(functools.partial(value_and_gradients, whole))(*inputs)
    tables = [x.table_NX for x in (d_scoring, d_scoring_whole) if x.table_NX is not None]
    names = ["out", "d_q", "d_k", "d_v", "d_sink", "d_table"][: 5 + len(tables) // 2]
    for name, one, other in zip(names, got + tables[:1], want + tables[1:], strict=True):
        np.testing.assert_allclose(
            one, other, rtol=0, atol=1e-5 * max(np.abs(other).max(), 0.1), err_msg=name
        )
    return got, mask


@pytest.mark.parametrize("kind", KINDS)
def test_equals_attention_over_the_whole_sequence(kind):
    compare(kind, 4, make_inputs(0, v_dim=12), softcap=1.5, sinks=True)


@pytest.mark.parametrize("by_distance", ["slopes", "table"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_by_distance_equal_those_of_the_whole_sequence(kind, by_distance):
    """Of packed documents, on devices that hold an early and a late chunk each."""
    compare(kind, 4, make_inputs(1), sinks=True, by_distance=by_distance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MASKS)
def test_every_mask_equals_fp64(kind, name):
    inputs = make_inputs(4, length=40)
    got, mask = compare(kind, 4, inputs, mask=MASKS[name](np.random.default_rng(2), (2, 40)))
    q, k, v, _, d_out, _ = inputs
    out, _, *gradients = attention_fp64(q, k, v, d_out, mask)
    for result, x, want in zip(("out", "d_q", "d_k", "d_v"), got, (out, *gradients), strict=False):
        assert relative_error(x, want) < 1e-5, result


@pytest.mark.parametrize("kind", KINDS)
def test_masks_with_least_equal_fp64(kind):
    inputs = make_inputs(7, length=40)
    segments = jnp.asarray(inputs[-1]).at[1, 33:].set(0)
    mask = causal(segments, jnp.broadcast_to(jnp.arange(40, dtype=jnp.int32), segments.shape), 13)
    got, _ = compare(kind, 4, inputs, mask=with_least(mask, segments))
    q, k, v, _, d_out, _ = inputs
    out, _, *gradients = attention_fp64(q, k, v, d_out, mask)
    for result, x, want in zip(("out", "d_q", "d_k", "d_v"), got, (out, *gradients), strict=False):
        assert relative_error(x, want) < 1e-5, result


def test_grouped_heads_and_an_odd_number_of_devices():
    compare("ring", 3, make_inputs(1, length=48, kv_heads=1, head_dim=4))


def test_window_visits_neighbours_only():
    # Chunks of 2 tokens: the window reaches 2 chunks back, so 2 neighbours on either side of 8
    # devices.
    compare("ring", 8, make_inputs(2, documents=1), window=5)


def test_without_causal_mask():
    compare("ring", 4, make_inputs(3), causal=False, window=6)


FEATURES = st.fixed_dictionaries(
    {
        "causal": st.booleans(),
        "window": st.sampled_from([None, 1, 2, 3, 7, 16, 31]),
        "softcap": st.sampled_from([None, 2.0]),
        "scale": st.sampled_from([None, 0.3]),
        "by_distance": st.sampled_from([None, "slopes", "table"]),
        "sinks": st.booleans(),
    }
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**20),
    kind=st.sampled_from(list(KINDS)),
    devices=st.sampled_from([2, 4, 8]),
    chunk=st.sampled_from([1, 2, 3, 8]),
    kv_heads=st.sampled_from([8, 2, 1]),
    v_dim=st.sampled_from([8, 5]),
    documents=st.sampled_from([1, 2, 9]),
    features=FEATURES,
)
def test_equals_for_random_features(
    seed, kind, devices, chunk, kv_heads, v_dim, documents, features
):
    kv_heads = 8 if kind == "ulysses" else kv_heads
    length = 2 * devices * chunk
    inputs = make_inputs(
        seed, length=length, heads=8, kv_heads=kv_heads, v_dim=v_dim, documents=documents
    )
    compare(kind, devices, inputs, **features)


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_zigzag_gives_each_device_an_early_and_a_late_chunk(devices):
    index = np.broadcast_to(np.arange(4 * devices, dtype=np.int32), (1, 4 * devices))

    def check(index):
        mine = zigzag(index)
        starts = [
            2 * number + jnp.arange(2) for number in chunk_numbers(jax.lax.axis_index("context"))
        ]
        right = [
            jnp.all(half == place) for half, place in zip(split_chunks(mine), starts, strict=True)
        ]
        right.append(jnp.all(mine == places(mine)))
        gathered = jax.lax.all_gather(mine, "context", axis=1, tiled=True)
        right += [
            jnp.all(jnp.diff(in_order(gathered)) == 1),
            jnp.all(zigzag_order(in_order(gathered)) == gathered),
        ]
        return jnp.stack(right)[None]

    assert np.all(on_devices(check, devices, SEQUENCE)(index)), "chunks"
    back = on_devices(lambda x: from_zigzag(zigzag(x)), devices, SEQUENCE)(index.astype(np.float32))
    np.testing.assert_array_equal(back, index)
