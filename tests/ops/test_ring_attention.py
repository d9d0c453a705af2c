"""Attention over a split sequence against the same attention over the whole one: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import MeshConfig
from maxlm.kernels import chunked_attention
from maxlm.kernels.mask import Mask
from maxlm.ops.attention import IMPLEMENTATIONS, attention
from maxlm.ops.context_attention import KINDS, context_attention
from maxlm.sharding.context import in_order, zigzag, zigzag_order
from maxlm.sharding.mesh import build_mesh

CHUNKED = IMPLEMENTATIONS["chunked"]


def on_devices(function, devices, num_inputs):
    """Run a function of (B, T, ...) arrays on as many devices, each with its part of the sequence."""
    mesh = build_mesh(MeshConfig(fsdp=1, context=devices), jax.devices()[:devices])
    specs = P(None, "context")
    return jax.shard_map(function, mesh=mesh, in_specs=(specs,) * num_inputs, out_specs=specs)


def make_inputs(seed, *, batch=2, length=32, heads=4, kv_heads=2, head_dim=8, v_dim=8, documents=4):
    rng = np.random.default_rng(seed)
    shapes = [(heads, head_dim), (kv_heads, head_dim), (kv_heads, v_dim), (heads, v_dim)]
    arrays = [rng.normal(size=(batch, length, *shape)).astype(np.float32) for shape in shapes]
    segments = np.sort(rng.integers(1, documents + 1, (batch, length)), axis=1).astype(np.int32)
    return *arrays, segments


def value_and_gradients(attend):
    """Return run(q, k, v, d_out, segments) -> (out, d_q, d_k, d_v)."""

    def run(q, k, v, d_out, segments):
        out, pullback = jax.vjp(lambda q, k, v: attend(q, k, v, segments), q, k, v)
        return out, *pullback(d_out)

    return run


def from_zigzag(x):
    """Undo `zigzag`: a permutation's inverse is its transpose."""
    return jax.vjp(zigzag, x)[1](x)[0]


def compare(kind, devices, inputs, *, causal=True, window=None):
    def mask(segments):
        return Mask(segments, segments, jnp.int32(0), jnp.int32(0), causal=causal, window=window)

    def whole(q, k, v, segments):
        return attention(q, k, v, mask(segments), CHUNKED)

    def spread(q, k, v, segments):
        q, k, v, segments = map(zigzag, (q, k, v, segments))
        return from_zigzag(context_attention(q, k, v, mask(segments), CHUNKED, kind))

    got = jax.jit(on_devices(value_and_gradients(spread), devices, len(inputs)))(*inputs)
    want = jax.jit(value_and_gradients(whole))(*inputs)
    for name, one, other in zip(["out", "d_q", "d_k", "d_v"], got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max(), err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("devices", [2, 4])
def test_equals_attention_over_the_whole_sequence(kind, devices):
    compare(kind, devices, make_inputs(0, kv_heads=4, v_dim=12))
