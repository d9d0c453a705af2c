"""Attention and its gradients written out in fp64, with nothing in common with the kernels."""

import numpy as np


def attention_fp64(q, k, v, d_out, segments_q, segments_kv, q_start, kv_start, causal, window, softcap):
    """Return out (B, T, N, H_v), lse (B, N, T; -1e30 where nothing is seen), dq, dk and dv in fp64."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    segments_q, segments_kv = np.asarray(segments_q), np.asarray(segments_kv)
    num_kv_heads, groups = k.shape[2], q.shape[2] // k.shape[2]
    keys, values = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    distance = int(q_start) + np.arange(q.shape[1])[:, None] - int(kv_start) - np.arange(k.shape[1])
    seen = (segments_q[:, :, None] == segments_kv[:, None, :]) & (segments_kv > 0)[:, None, :]
    seen &= distance >= 0 if causal else True
    seen &= distance < window if window is not None else True
    seen = seen[:, None]
    scale = 1 / np.sqrt(q.shape[3])
    scores = np.einsum("btnh,bsnh->bnts", q, keys) * scale
    slope = np.ones_like(scores)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
        slope = 1 - (scores / softcap) ** 2
    peak = np.where(seen, scores, -1e30).max(axis=3, keepdims=True)
    exponentials = np.where(seen, np.exp(np.minimum(scores - peak, 0)), 0.0)
    total = exponentials.sum(axis=3, keepdims=True)
    p = exponentials / np.maximum(total, 1e-300)
    out = np.einsum("bnts,bsnh->btnh", p, values)
    lse = np.where(total > 0, peak + np.log(np.maximum(total, 1e-300)), -1e30)[..., 0]
    d_p = np.einsum("btnh,bsnh->bnts", d_out, values)
    d_s = p * (d_p - (p * d_p).sum(axis=3, keepdims=True)) * slope * scale

    def per_kv_head(x):
        return x.reshape(*x.shape[:2], num_kv_heads, groups, x.shape[3]).sum(axis=3)

    d_q = np.einsum("bnts,bsnh->btnh", d_s, keys)
    d_k = per_kv_head(np.einsum("bnts,btnh->bsnh", d_s, q))
    d_v = per_kv_head(np.einsum("bnts,btnh->bsnh", p, d_out))
    return out, lse, d_q, d_k, d_v
