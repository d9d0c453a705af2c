"""Attention and its gradients written out in fp64, and inputs to compare kernels on."""

import jax.numpy as jnp
import numpy as np

from maxlm.kernels.mask import NOTHING_SEEN, Mask


def make_inputs(
    seed, *, batch=2, length=24, kv_length=None, heads=4, kv_heads=2, head_dim=16, v_dim=None, documents=3,
    dtype=jnp.float32, q_start=0, kv_start=0, causal=True, window=None, of_none=0.05,
):  # fmt: skip
    """Return q, k, v, d_out, mask; documents lie one after the other, `of_none` of the keys are of none."""
    rng = np.random.default_rng(seed)
    kv_length, v_dim = kv_length or length, v_dim or head_dim
    shapes = (length, heads, head_dim), (kv_length, kv_heads, head_dim), (kv_length, kv_heads, v_dim)
    q, k, v, d_out = (
        jnp.asarray(rng.normal(size=(batch, *shape)), dtype) for shape in (*shapes, (length, heads, v_dim))
    )
    longest = max(q_start + length, kv_start + kv_length)
    segments = np.sort(rng.integers(1, documents + 1, (batch, longest)), axis=1).astype(np.int32)
    kv_segments = segments[:, kv_start : kv_start + kv_length].copy()
    kv_segments[rng.random(kv_segments.shape) < of_none] = 0
    mask = Mask(
        jnp.asarray(segments[:, q_start : q_start + length]),
        jnp.asarray(kv_segments),
        jnp.int32(q_start),
        jnp.int32(kv_start),
        causal=causal,
        window=window,
    )
    return q, k, v, d_out, mask


def seen_fp64(mask, length, kv_length):
    """Return bool (B, T, S): who sees whom."""
    distance = (int(mask.q_start) + np.arange(length))[:, None] - (int(mask.kv_start) + np.arange(kv_length))[None]
    seen = np.ones(distance.shape, bool)
    if mask.causal:
        seen &= distance >= 0
    if mask.window is not None:
        seen &= distance < mask.window
    q_segments, kv_segments = np.asarray(mask.q_segments_BT), np.asarray(mask.kv_segments_BS)
    return seen & (q_segments[:, :, None] == kv_segments[:, None]) & (kv_segments > 0)[:, None]


def attention_fp64(q, k, v, d_out, mask, softcap=None):
    """Return out, lse, dq, dk, dv in fp64."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    groups, scale = q.shape[2] // k.shape[2], 1 / np.sqrt(q.shape[3])
    k_all, v_all = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    scores = np.einsum("btnh,bsnh->bnts", q, k_all) * scale
    slope = 1.0
    if softcap is not None:
        slope = 1 / np.cosh(scores / softcap) ** 2
        scores = softcap * np.tanh(scores / softcap)
    seen = seen_fp64(mask, q.shape[1], k.shape[1])[:, None]
    peak = np.where(seen, scores, NOTHING_SEEN).max(-1, keepdims=True)
    exp = np.where(seen, np.exp(np.where(seen, scores - peak, 0)), 0.0)
    total = exp.sum(-1, keepdims=True)
    p = exp / np.where(total > 0, total, 1)
    lse = np.where(total > 0, peak + np.log(np.where(total > 0, total, 1)), NOTHING_SEEN)[..., 0]
    out = np.einsum("bnts,bsnh->btnh", p, v_all)
    d_p = np.einsum("btnh,bsnh->bnts", d_out, v_all)
    delta = np.einsum("btnh,btnh->bnt", d_out, out)
    d_s = p * (d_p - delta[..., None]) * slope * scale

    def per_kv_head(x):
        return x.reshape(*x.shape[:2], -1, groups, x.shape[3]).sum(3)

    d_k, d_v = (per_kv_head(np.einsum("bnts,btnh->bsnh", x, y)) for x, y in ((d_s, q), (p, d_out)))
    return out, lse, np.einsum("bnts,bsnh->btnh", d_s, k_all), d_k, d_v


def relative_error(got, want):
    """Return the largest difference over the largest value, or over 1, the size of the inputs.

    Rows that see nothing must agree in that; their lse is of another size.
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    nothing = want == NOTHING_SEEN
    assert np.array_equal(got == np.float32(NOTHING_SEEN), nothing)
    got, want = np.where(nothing, 0, got), np.where(nothing, 0, want)
    return np.abs(got - want).max() / max(np.abs(want).max(), 1)
