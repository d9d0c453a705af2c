"""The plain attention against softmax written out in fp64, over every combination of what a mask
can say.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.kernels import chunked_attention
from maxlm.kernels.mask import with_least
from maxlm.kernels.shape import Scoring
from maxlm.ops.attention import CHUNKED, attention
from tests.kernels.oracle import (
    MASKS,
    attention_fp64,
    make_inputs,
    make_scoring,
    place_mask,
    relative_error,
    seen_fp64,
)


def oracle(q, k, v, mask, softcap=None):
    """fp64 out and its gradient for d_out = out, by autodiff-free formulas."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    groups = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[3])
    scores = softcap * np.tanh(scores / softcap) if softcap else scores
    seen = seen_fp64(mask)
    seen = seen[:, None]
    with np.errstate(all="ignore"):
        peak = np.where(seen, scores, -np.inf).max(-1, keepdims=True)
        exp = np.where(seen, np.exp(scores - peak), 0.0)
        total = exp.sum(-1, keepdims=True)
        p = np.where(total > 0, exp / total, 0.0)
        lse = (peak + np.log(total))[..., 0]
    return np.einsum("bnts,bsnh->btnh", p, v), lse, p


def make(
    seed,
    *,
    batch=2,
    length=16,
    kv_length=None,
    heads=4,
    kv_heads=2,
    head_dim=8,
    v_dim=8,
    dtype=jnp.float32,
    **mask,
):
    rng = np.random.default_rng(seed)
    kv_length = kv_length or length
    q = jnp.asarray(rng.normal(size=(batch, length, heads, head_dim)), dtype)
    k = jnp.asarray(rng.normal(size=(batch, kv_length, kv_heads, head_dim)), dtype)
    v = jnp.asarray(rng.normal(size=(batch, kv_length, kv_heads, v_dim)), dtype)
    q_segments = np.sort(rng.integers(1, 4, (batch, length)), axis=1)
    kv_segments = (
        q_segments
        if kv_length == length
        else np.sort(rng.integers(1, 4, (batch, kv_length)), axis=1)
    )
    places = (
        mask.pop("q_start", 0) + np.arange(length),
        mask.pop("kv_start", 0) + np.arange(kv_length),
    )
    return q, k, v, place_mask(q_segments, kv_segments, *places, **mask)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    length=st.sampled_from([1, 5, 16, 23]),
    block=st.sampled_from([4, 8, 512]),
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    v_dim=st.sampled_from([8, 12]),
    window=st.sampled_from([None, 1, 3, 9]),
    causal=st.booleans(),
    softcap=st.sampled_from([None, 0.7]),
)
def test_equals_fp64_softmax(seed, length, block, heads, v_dim, window, causal, softcap):
    q, k, v, mask = make(
        seed,
        length=length,
        heads=heads[0],
        kv_heads=heads[1],
        v_dim=v_dim,
        window=window,
        causal=causal,
    )
    how = {"scoring": Scoring(softcap=softcap)}
    forward, backward = (functools.partial(function, **how) for function in CHUNKED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_attention, "block_size", lambda length: min(length, block))
        out, lse = jax.jit(forward)(q, k, v, mask)
        want_out, want_lse, p = oracle(q, k, v, mask, softcap)
        np.testing.assert_allclose(out, want_out, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(lse, want_lse, rtol=2e-5, atol=2e-6)
        d_q, d_k, d_v = jax.jit(backward)(q, k, v, out, lse, out, mask)
    groups = heads[0] // heads[1]
    q64, k64, v64 = (
        np.asarray(x, np.float64) for x in (q, np.repeat(k, groups, 2), np.repeat(v, groups, 2))
    )
    d_p = np.einsum("btnh,bsnh->bnts", want_out, v64)
    d_s = (
        p
        * (d_p - (want_out * want_out).sum(-1).transpose(0, 2, 1)[..., None])
        / np.sqrt(q.shape[3])
    )
    if softcap:
        d_s /= np.cosh(np.einsum("btnh,bsnh->bnts", q64, k64) / np.sqrt(q.shape[3]) / softcap) ** 2

    def per_kv_head(x):
        return x.reshape(*x.shape[:2], heads[1], groups, -1).sum(3)

    np.testing.assert_allclose(d_q, np.einsum("bnts,bsnh->btnh", d_s, k64), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        d_k, per_kv_head(np.einsum("bnts,btnh->bsnh", d_s, q64)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        d_v, per_kv_head(np.einsum("bnts,btnh->bsnh", p, want_out)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("length", [5, 37])
@pytest.mark.parametrize("name", MASKS)
def test_every_mask_equals_fp64(monkeypatch, name, length):
    monkeypatch.setattr(chunked_attention, "block_size", lambda length: min(length, 8))
    q, k, v, d_out, _ = make_inputs(0, length=length, head_dim=8)
    mask = MASKS[name](np.random.default_rng(1), (2, length))

    def both_passes(q, k, v, d_out, mask):
        out, lse = chunked_attention.forward(q, k, v, mask)
        return out, lse, *chunked_attention.backward(q, k, v, out, lse, d_out, mask)

    got = jax.jit(both_passes)(q, k, v, d_out, mask)
    for number, (x, want) in enumerate(zip(got, attention_fp64(q, k, v, d_out, mask), strict=True)):
        assert relative_error(x, want) < 1e-5, number


@pytest.mark.parametrize(
    ("length", "window", "how"),
    [
        (5, 2, {}),
        (37, None, {"softcap": 0.7}),
        (37, 9, {"scale": 0.2}),
        (37, None, {"by_distance": "slopes"}),
        (37, 20, {"by_distance": "table"}),
    ],
)
def test_masks_with_least_equal_fp64(monkeypatch, length, window, how):
    """Documents with keys that are of none, and filling behind them."""
    scoring = make_scoring(4, **how)
    monkeypatch.setattr(chunked_attention, "block_size", lambda length: min(length, 8))
    q, k, v, d_out, mask = make_inputs(5, length=length, head_dim=8, window=window, of_none=0.1)
    filled = mask.q_segments_BT.at[1, -length // 4 :].set(0)
    kv_segments = jnp.minimum(mask.kv_segments_BS, filled)
    mask = dataclasses.replace(mask, q_segments_BT=filled, kv_segments_BS=kv_segments, causal=True)
    short = with_least(mask, filled)
    assert short.q_least_BT is not None

    def both_passes(q, k, v, d_out, mask):
        out, lse = chunked_attention.forward(q, k, v, mask, scoring=scoring)
        gradients = chunked_attention.backward(q, k, v, out, lse, d_out, mask, scoring=scoring)
        return out, lse, *gradients

    got = jax.jit(both_passes)(q, k, v, d_out, short)
    for number, (x, want) in enumerate(
        zip(got, attention_fp64(q, k, v, d_out, mask, scoring), strict=True)
    ):
        assert relative_error(x, want) < 1e-5, number


@pytest.mark.parametrize("how", [{"by_distance": "slopes"}, {"by_distance": "table", "scale": 0.3}])
@pytest.mark.parametrize("length", [5, 37])
def test_scores_by_distance_equal_fp64(monkeypatch, length, how):
    monkeypatch.setattr(chunked_attention, "block_size", lambda length: min(length, 8))
    *inputs, mask = make_inputs(0, length=length, kv_length=40, head_dim=8, q_start=3)
    scoring = make_scoring(4, **how)

    def both_passes(q, k, v, d_out, mask, scoring):
        out, lse = chunked_attention.forward(q, k, v, mask, scoring=scoring)
        gradients = chunked_attention.backward(q, k, v, out, lse, d_out, mask, scoring=scoring)
        return out, lse, *gradients

    got = jax.jit(both_passes)(*inputs, mask, scoring)
    want = attention_fp64(*inputs, mask, scoring)
    for number, (x, y) in enumerate(zip(got, want, strict=True)):
        assert relative_error(x, y) < 1e-5, number


@pytest.mark.parametrize(("q_start", "kv_start"), [(8, 0), (0, 8), (16, 16), (3, 0)])
def test_offsets_place_queries_and_keys_in_a_longer_sequence(monkeypatch, q_start, kv_start):
    monkeypatch.setattr(chunked_attention, "block_size", lambda length: min(length, 4))
    q, k, v, mask = make(0, length=8, kv_length=12, window=6, q_start=q_start, kv_start=kv_start)
    out, lse = jax.jit(chunked_attention.forward)(q, k, v, mask)
    want_out, want_lse, _ = oracle(q, k, v, mask)
    np.testing.assert_allclose(out, want_out, rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(np.asarray(lse) < -1e29, ~np.isfinite(want_lse))


def test_rows_that_see_nothing_give_zeros_and_no_nan():
    q, k, v, mask = make(1, length=8, q_start=0, kv_start=100)
    out, pullback = jax.vjp(lambda q, k, v: attention(q, k, v, mask, None, CHUNKED), q, k, v)
    assert not np.any(out)
    assert all(not np.any(np.asarray(gradient)) for gradient in pullback(jnp.ones_like(out)))


def test_bfloat16_inputs_are_summed_in_fp32():
    q, k, v, mask = make(2, length=64, dtype=jnp.bfloat16)
    out, _ = chunked_attention.forward(q, k, v, mask)
    want, _, _ = oracle(q, k, v, mask)
    assert out.dtype == jnp.bfloat16
    # One rounding of the result, and of the probabilities, to 8 bits.
    np.testing.assert_allclose(np.asarray(out, np.float64), want, rtol=2**-6, atol=2**-6)


def plain_bfloat16(q, k, v, mask):
    """Attention written out: fp32 scores of bf16 arrays, probabilities rounded to bf16, fp32 sums."""
    q, k, v = (
        x.astype(jnp.float32) for x in (q, jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2))
    )
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[3])
    p = jax.nn.softmax(jnp.where(jnp.asarray(seen_fp64(mask))[:, None], scores, -1e30))
    return jnp.einsum("bnts,bsnh->btnh", p.astype(jnp.bfloat16).astype(jnp.float32), v).astype(
        jnp.bfloat16
    )


@pytest.mark.parametrize(
    "case",
    [{"length": 100}, {"length": 300, "window": 40, "v_dim": 24}, {"length": 64, "documents": 1}],
)
def test_bfloat16_gradients_lose_no_more_than_plain_bfloat16(case):
    q, k, v, d_out, mask = make_inputs(4, dtype=jnp.bfloat16, of_none=0, **case)
    want = attention_fp64(q, k, v, d_out, mask)
    # Without the option XLA leaves out roundings to bf16.
    jit = functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})

    def gradients(attend):
        out, pullback = jax.vjp(attend, q, k, v)
        return out, *pullback(d_out)

    ours = jit(lambda: gradients(lambda *qkv: attention(*qkv, mask, None, CHUNKED)))()
    plain = jit(lambda: gradients(lambda *qkv: plain_bfloat16(*qkv, mask)))()
    for name, x, y, exact in zip(
        ("out", "d_q", "d_k", "d_v"), ours, plain, (want[0], *want[2:]), strict=True
    ):
        errors = [np.sqrt(np.mean((np.asarray(z, np.float64) - exact) ** 2)) for z in (x, y)]
        assert x.dtype == jnp.bfloat16
        assert errors[0] <= 1.2 * errors[1], (name, errors)


def test_memory_grows_linearly_with_length():
    def temp_bytes(length):
        q, k, v, mask = jax.eval_shape(lambda: make(0, batch=1, length=16, heads=1, kv_heads=1))
        shape = lambda x: jax.ShapeDtypeStruct((1, length, *x.shape[2:]), x.dtype)  # noqa: E731
        mask = jax.tree.map(shape, mask)

        def gradients(q, k, v, mask):
            return jax.grad(
                lambda *qkv: attention(*qkv, mask, None, CHUNKED).sum(), argnums=(0, 1, 2)
            )(q, k, v)

        compiled = jax.jit(gradients).lower(shape(q), shape(k), shape(v), mask).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temp_bytes(4096), temp_bytes(16384)
    assert long < 5 * short  # quadratic would be 16 times


def test_a_sink_is_one_more_key_of_value_zero():
    q, k, v, mask = make(3, batch=1, length=6, kv_heads=4)
    ones = jnp.ones((1, 6), jnp.int32)
    mask = dataclasses.replace(mask, q_segments_BT=ones, kv_segments_BS=ones)  # causal
    sink = jnp.asarray([-1.0, 0.0, 1.0, 3.0])

    def plain(q, k, v, sink):
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[3])
        scores = jnp.where(jnp.tril(jnp.ones((6, 6), bool)), scores, -jnp.inf)
        with_sink = jnp.concatenate(
            [scores, jnp.broadcast_to(sink[:, None, None], (1, 4, 6, 1))], axis=3
        )
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(with_sink)[..., :-1], v)

    out, pullback = jax.vjp(
        lambda q, k, v, sink: attention(q, k, v, mask, sink, CHUNKED), q, k, v, sink
    )
    want, want_pullback = jax.vjp(plain, q, k, v, sink)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
    for got, wanted in zip(pullback(out), want_pullback(want), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_tiles_are_large_where_they_need_no_more_filling():
    sizes = {5: 5, 128: 128, 200: 128, 511: 128, 512: 256, 513: 128, 640: 128, 1000: 256}
    sizes |= {2048: 256, 4096: 256, 6000: 384, 8192: 512, 10**6: 512}
    assert {length: chunked_attention.block_size(length) for length in sizes} == sizes


@pytest.mark.parametrize("bound", [16, 4096])
@pytest.mark.parametrize("window", [None, 5])
def test_one_query_and_many_keys(bound, window, monkeypatch):
    """At once, or tile by tile where there are more keys than the bound."""
    monkeypatch.setattr(chunked_attention, "MAX_WHOLE", bound)
    monkeypatch.setattr(chunked_attention, "block_size", lambda length: min(length, 8))
    q, k, v, mask = make(0, length=37, heads=4, kv_heads=2, v_dim=12, window=window, causal=True)
    place = 30
    one = dataclasses.replace(
        mask,
        q_segments_BT=mask.q_segments_BT[:, place : place + 1],
        q_rank_BT=mask.q_rank_BT[:, place : place + 1],
        q_least_BT=None if mask.q_least_BT is None else mask.q_least_BT[:, place : place + 1],
    )
    want_out, want_lse, _ = oracle(q, k, v, mask, None)
    out, lse = jax.jit(CHUNKED.forward)(q[:, place : place + 1], k, v, one)
    np.testing.assert_allclose(out, want_out[:, place : place + 1], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(lse, want_lse[:, :, place : place + 1], rtol=2e-5, atol=2e-6)
