"""Attention with all scores at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maxlm.kernels.mask import NOTHING_SEEN, Mask
from maxlm.kernels.shape import PLAIN, AttentionShape, Scoring


def unsupported(shape: AttentionShape) -> str | None:
    """Return why the kernel cannot do what is asked, or None if it can."""
    if shape.key_length > 4096:
        return f"holds all scores at once, too many for data.sequence_length={shape.key_length}"
    if shape.by_distance:
        return "adds nothing to scores by distance"
    return None


def forward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring = PLAIN,
) -> tuple[jax.Array, jax.Array]:
    """Return softmax(scores) v (B, T, N, H_v), and the log-sum-exp of each row's scores,
    fp32 (B, N, T).
    """
    scores = _scores(q_BTNH, k_BSKH, mask, scoring)
    lse_BNT = jnp.maximum(jax.nn.logsumexp(scores, axis=-1), NOTHING_SEEN)
    out = jnp.einsum("BNTS,BSNH->BTNH", _weights(scores, lse_BNT), _for_queries(v_BSKH, q_BTNH))
    return out.astype(q_BTNH.dtype), lse_BNT


def backward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    out_BTNH: jax.Array,
    lse_BNT: jax.Array,
    d_out_BTNH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring = PLAIN,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return dq, dk and dv, with ds = p (do v^T - rowsum(do * out))."""
    scores, transpose = jax.vjp(lambda q, k: _scores(q, k, mask, scoring), q_BTNH, k_BSKH)
    p = _weights(scores, lse_BNT)
    delta_BNT = jnp.einsum(
        "BTNH,BTNH->BNT", d_out_BTNH, out_BTNH, preferred_element_type=jnp.float32
    )
    d_p, transpose_v = jax.vjp(
        lambda p, v: jnp.einsum("BNTS,BSNH->BTNH", p, _for_queries(v, q_BTNH)).astype(jnp.float32),
        p,
        v_BSKH,
    )
    del d_p
    from_p, d_v = transpose_v(d_out_BTNH.astype(jnp.float32))
    return *transpose(p * (from_p - delta_BNT[..., None])), d_v


def _scores(q_BTNH: jax.Array, k_BSKH: jax.Array, mask: Mask, scoring: Scoring) -> jax.Array:
    """Return the scores (B, N, T, S), fp32, -inf where a query does not see a key."""
    scale, softcap = scoring.scale_of(q_BTNH.shape[-1]), scoring.softcap
    keys = _for_queries(k_BSKH, q_BTNH)
    scores = scale * jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, keys, preferred_element_type=jnp.float32)
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    rank, start, until = (
        mask.q_rank_BT[:, :, None],
        mask.kv_from_BS[:, None],
        mask.kv_until_BS[:, None],
    )
    same = (mask.q_segments_BT[:, :, None] == mask.kv_segments_BS[:, None]) & (
        mask.kv_segments_BS[:, None] > 0
    )
    return jnp.where((same & (start <= rank) & (rank < until))[:, None], scores, -jnp.inf)


def _weights(scores: jax.Array, lse_BNT: jax.Array) -> jax.Array:
    return jnp.exp(scores - lse_BNT[..., None])


def _for_queries(x_BSKH: jax.Array, q_BTNH: jax.Array) -> jax.Array:
    """Repeat each key or value head for its query heads, (B, S, N, H)."""
    return jnp.repeat(x_BSKH, q_BTNH.shape[2] // x_BSKH.shape[2], axis=2)
