"""Attention and its gradients written out in fp64, and inputs to compare kernels on."""

import jax.numpy as jnp
import numpy as np

from maxlm.kernels.mask import EVERYTHING, NOTHING_SEEN, Mask
from maxlm.kernels.shape import PLAIN, Scoring


def make_inputs(
    seed, *, batch=2, length=24, kv_length=None, heads=4, kv_heads=2, head_dim=16, v_dim=None, documents=3,
    dtype=jnp.float32, q_start=0, kv_start=0, causal=True, window=None, of_none=0.05,
):  # fmt: skip
    """Return q, k, v, d_out, mask; documents lie one after the other, `of_none` of the keys are of
    none.
    """
    rng = np.random.default_rng(seed)
    kv_length, v_dim = kv_length or length, v_dim or head_dim
    shapes = (
        (length, heads, head_dim),
        (kv_length, kv_heads, head_dim),
        (kv_length, kv_heads, v_dim),
    )
    q, k, v, d_out = (
        jnp.asarray(rng.normal(size=(batch, *shape)), dtype)
        for shape in (*shapes, (length, heads, v_dim))
    )
    longest = max(q_start + length, kv_start + kv_length)
    segments = np.sort(rng.integers(1, documents + 1, (batch, longest)), axis=1).astype(np.int32)
    kv_segments = segments[:, kv_start : kv_start + kv_length].copy()
    kv_segments[rng.random(kv_segments.shape) < of_none] = 0
    q_segments = segments[:, q_start : q_start + length]
    places = q_start + np.arange(length), kv_start + np.arange(kv_length)
    return (
        q,
        k,
        v,
        d_out,
        place_mask(q_segments, kv_segments, *places, causal=causal, window=window),
    )


def place_mask(q_segments, kv_segments, q_place, kv_place, *, causal=True, window=None):
    """Return the mask of places in a sequence, (T,) and (S,), counted from 0."""
    rank, place = (
        np.broadcast_to(x, y.shape) for x, y in ((q_place, q_segments), (kv_place, kv_segments))
    )
    start = place if causal else np.zeros_like(place)
    end = np.full_like(place, EVERYTHING) if window is None else place + window
    reach = (window or EVERYTHING) if causal else None
    return Mask(
        *(jnp.asarray(x, jnp.int32) for x in (q_segments, kv_segments, rank, start, end)),
        reach=reach,
    )


def _whole(segments, rank, start, end, reach=None):
    arrays = (segments, segments, rank, start, end)
    return Mask(
        *(jnp.asarray(np.broadcast_to(x, segments.shape), jnp.int32) for x in arrays), reach=reach
    )


def _documents(rng, shape):
    return np.sort(rng.integers(1, 4, shape), axis=1)


def _starts(segments):
    """Return where each token's document starts."""
    return np.argmax(segments[:, :, None] == segments[:, None, :], axis=2)


def _prefix(rng, shape):
    segments, place = _documents(rng, shape), np.arange(shape[1])
    starts = _starts(segments)
    of_prefix = place < starts + rng.integers(1, shape[1] // 2 + 2, (shape[0], 1))
    return _whole(segments, place, np.where(of_prefix, starts, place), EVERYTHING)


def _chunks(rng, shape):
    place, chunk = np.arange(shape[1]), max(shape[1] // 5, 1)
    return _whole(
        _documents(rng, shape), place, place // chunk * chunk, (place // chunk + 1) * chunk
    )


def _rows_that_see_nothing(rng, shape):
    segments, place = _documents(rng, shape), np.arange(shape[1])
    segments[:, -shape[1] // 4 :] = 0
    return _whole(
        segments, place, np.where(rng.random(shape) < 0.3, EVERYTHING, place + 2), EVERYTHING
    )


def _block_diffusion(rng, shape):
    """[noised | clean]: a noised block sees itself and the clean ones before, a clean one the clean
    ones to itself.
    """
    half = shape[1] // 2
    place = np.arange(shape[1])
    clean, block = place >= half, place % max(half, 1) // max(half // 4, 1)
    segments = np.tile(_documents(rng, (shape[0], half)), 2)
    segments = np.pad(segments, ((0, 0), (0, shape[1] - 2 * half)))
    end = np.where(clean, EVERYTHING, 2 * block + 1)
    return _whole(segments, 2 * block + clean, 2 * block + clean, end)


def _any(rng, shape):
    """Nothing that real models use: segments and numbers in any order."""
    start = rng.integers(0, 30, shape)
    rank, end = rng.integers(0, 40, shape), start + rng.integers(0, 20, shape)
    return _whole(rng.integers(0, 3, shape), rank, start, end)


MASKS = {
    "causal": lambda rng, shape: _whole(
        np.ones(shape), *(np.arange(shape[1]),) * 2, EVERYTHING, reach=EVERYTHING
    ),
    "window": lambda rng, shape: _whole(
        np.ones(shape), *(np.arange(shape[1]),) * 2, np.arange(shape[1]) + 5, reach=5
    ),
    "documents": lambda rng, shape: _whole(
        _documents(rng, shape), *(np.arange(shape[1]),) * 2, EVERYTHING
    ),
    "bidirectional": lambda rng, shape: _whole(_documents(rng, shape), 0, 0, EVERYTHING),
    "prefix": _prefix,
    "chunks": _chunks,
    "rows that see nothing": _rows_that_see_nothing,
    "block diffusion": _block_diffusion,
    "any": _any,
}
"""Masks of one sequence, from a generator of random numbers and (batch, length)."""


def make_scoring(heads, *, softcap=None, scale=None, by_distance=None):
    """Return how scores are made, of so many heads; slopes and a table come without a softcap."""
    rng = np.random.default_rng(heads)
    if by_distance is None:
        return Scoring(scale, softcap)
    if by_distance == "slopes":
        return Scoring(scale, slopes_N=jnp.asarray(rng.uniform(0.02, 0.5, heads), jnp.float32))
    table = jnp.asarray(rng.normal(size=(heads, 5)), jnp.float32)
    return Scoring(scale, table_NX=table, edges=(1, 2, 4, 9))


def _mask_fp64(mask):
    fields = (
        mask.q_segments_BT,
        mask.q_rank_BT,
        mask.kv_segments_BS,
        mask.kv_from_BS,
        mask.kv_until_BS,
    )
    segment, rank, kv_segment, start, end = (np.asarray(x, np.int64) for x in fields)
    segment, rank = segment[:, :, None], rank[:, :, None]
    kv_segment, start, end = kv_segment[:, None], start[:, None], end[:, None]
    seen = (kv_segment > 0) & (segment == kv_segment) & (start <= rank) & (rank < end)
    return seen, np.where(seen, rank - start, 0)


def seen_fp64(mask):
    """Return bool (B, T, S): who sees whom."""
    return _mask_fp64(mask)[0]


def attention_fp64(q, k, v, d_out, mask, scoring=PLAIN):
    """Return out, lse, dq, dk, dv in fp64, and with a table its gradient."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    groups, softcap = q.shape[2] // k.shape[2], scoring.softcap
    scale = 1 / np.sqrt(q.shape[3]) if scoring.scale is None else scoring.scale
    k_all, v_all = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    scores = np.einsum("btnh,bsnh->bnts", q, k_all) * scale
    slope = 1.0
    if softcap is not None:
        slope = 1 / np.cosh(scores / softcap) ** 2
        scores = softcap * np.tanh(scores / softcap)
    seen, distance = (x[:, None] for x in _mask_fp64(mask))
    if scoring.slopes_N is not None:
        scores = scores - np.asarray(scoring.slopes_N, np.float64)[:, None, None] * distance
    bucket = np.searchsorted(scoring.edges, distance, side="right")
    if scoring.table_NX is not None:
        table = np.asarray(scoring.table_NX, np.float64)
        scores = scores + np.take_along_axis(
            table[None, :, None], np.broadcast_to(bucket, scores.shape), axis=3
        )
    peak = np.where(seen, scores, NOTHING_SEEN).max(-1, keepdims=True)
    exp = np.where(seen, np.exp(np.where(seen, scores - peak, 0)), 0.0)
    total = exp.sum(-1, keepdims=True)
    p = exp / np.where(total > 0, total, 1)
    lse = np.where(total > 0, peak + np.log(np.where(total > 0, total, 1)), NOTHING_SEEN)[..., 0]
    out = np.einsum("bnts,bsnh->btnh", p, v_all)
    d_p = np.einsum("btnh,bsnh->bnts", d_out, v_all)
    delta = np.einsum("btnh,btnh->bnt", d_out, out)
    d_added = p * (d_p - delta[..., None])
    d_s = d_added * slope * scale

    def per_kv_head(x):
        return x.reshape(*x.shape[:2], -1, groups, x.shape[3]).sum(3)

    d_k, d_v = (per_kv_head(np.einsum("bnts,btnh->bsnh", x, y)) for x, y in ((d_s, q), (p, d_out)))
    results = out, lse, np.einsum("bnts,bsnh->btnh", d_s, k_all), d_k, d_v
    if scoring.table_NX is None:
        return results
    of_buckets = [(d_added * (bucket == x)).sum((0, 2, 3)) for x in range(table.shape[1])]
    return *results, np.stack(of_buckets, axis=1)


def relative_error(got, want):
    """Return the largest difference over the largest value, or over 1, the size of the inputs.

    Rows that see nothing must agree in that; their lse is of another size.
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    nothing = want == NOTHING_SEEN
    assert np.array_equal(got == np.float32(NOTHING_SEEN), nothing)
    got, want = np.where(nothing, 0, got), np.where(nothing, 0, want)
    return np.abs(got - want).max() / max(np.abs(want).max(), 1)
