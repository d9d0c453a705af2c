"""Attention: a table of implementations, each a forward/backward pair, and the one custom gradient around the pair."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from maxlm.kernels import chunked_attention
from maxlm.kernels.mask import Mask


class Implementation(NamedTuple):
    """`forward(q, k, v, mask) -> (out, lse)` and `backward(q, k, v, out, lse, d_out, mask) -> (dq, dk, dv)`."""

    forward: Callable[..., tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


IMPLEMENTATIONS: dict[str, Implementation] = {
    "chunked": Implementation(chunked_attention.forward, chunked_attention.backward),
}
DEFAULT_ORDER: dict[str, tuple[str, ...]] = {"cpu": ("chunked",), "gpu": ("chunked",), "tpu": ("chunked",)}
"""Per platform, the implementations to try, best first."""


def choose_implementation(requested: str, platform: str) -> tuple[str, str]:
    """Return the implementation's name and the reason for the choice, for the log.

    Args:
      requested: `runtime.attention_kernel`.
      platform: of the devices: cpu, gpu or tpu.
    """
    if requested != "auto":
        return requested, f"runtime.attention_kernel={requested}"
    return DEFAULT_ORDER[platform][0], f"first of {', '.join(DEFAULT_ORDER[platform])} for {platform}"


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, implementation: str = "chunked"
) -> jax.Array:
    """Compute softmax(q k^T / sqrt(H)) v over the keys that the mask lets each query see; (B, T, N, H_v)."""
    return IMPLEMENTATIONS[implementation].forward(q_BTNH, k_BSKH, v_BSKH, mask)[0]


def _attention_forward(q, k, v, mask, implementation):  # type: ignore[no-untyped-def]
    out, lse = IMPLEMENTATIONS[implementation].forward(q, k, v, mask)
    # Named, so that remat can keep them: without lse the backward pass would run the forward kernel again.
    out, lse = checkpoint_name(out, "attention_out"), checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, out, lse, mask)


def _attention_backward(implementation, saved, d_out):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, mask = saved
    return *IMPLEMENTATIONS[implementation].backward(q, k, v, out, lse, d_out, mask), None


attention.defvjp(_attention_forward, _attention_backward)
