"""Attention: a table of implementations, each a forward/backward pair, and the one custom gradient around the pair."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maxlm.kernels import chunked_attention
from maxlm.kernels.mask import Mask


Partial = tuple[jax.Array, jax.Array]
"""Attention to some of the keys: out (B, T, N, H_v) and lse (B, N, T)."""


class Implementation(Protocol):
    """`forward(q, k, v, mask) -> (out, lse)` and `backward(q, k, v, out, lse, d_out, mask) -> (dq, dk, dv)`."""

    @property
    def forward(self) -> Callable[..., Partial]:
        """Return out in the queries' dtype, and fp32 lse."""

    @property
    def backward(self) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
        """Return gradients; `out` and `lse` may be of a larger softmax, of which these keys are a part."""


class Kernel(NamedTuple):
    """An implementation for a contiguous sequence that one device holds whole."""

    forward: Callable[..., Partial]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


IMPLEMENTATIONS: dict[str, Implementation] = {
    "chunked": Kernel(chunked_attention.forward, chunked_attention.backward),
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
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, implementation: Implementation
) -> jax.Array:
    """Compute softmax(q k^T / sqrt(H)) v over the keys that the mask lets each query see; (B, T, N, H_v)."""
    return implementation.forward(q_BTNH, k_BSKH, v_BSKH, mask)[0]


def _attention_forward(q, k, v, mask, implementation):  # type: ignore[no-untyped-def]
    out, lse = implementation.forward(q, k, v, mask)
    # Named, so that remat can keep them: without lse the backward pass would run the forward kernel again.
    out, lse = checkpoint_name(out, "attention_out"), checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, out, lse, mask)


def _attention_backward(implementation, saved, d_out):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, mask = saved
    return *implementation.backward(q, k, v, out, lse, d_out, mask), None


attention.defvjp(_attention_forward, _attention_backward)


def merge_partial(one: Partial, other: Partial) -> Partial:
    """Return fp32 attention to two disjoint sets of keys together, given attention to each."""
    lse_BNT = jnp.logaddexp(one[1], other[1])
    shares = (jnp.exp(lse - lse_BNT).swapaxes(1, 2)[..., None] for _, lse in (one, other))
    return sum(share * out for share, (out, _) in zip(shares, (one, other), strict=True)), lse_BNT
