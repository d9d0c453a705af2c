"""Norms of queries and keys: of each head, over all heads together, and without weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

from maxlm.config.model import NormConfig
from maxlm.layers.norm import OFFSETS, RMSNorm
from maxlm.sharding.parameters import Constant, weight


class AllHeadsNorm(nnx.Module):
    """RMSNorm of a token's queries or keys of all heads, which `tensor` splits, as one vector
    (arXiv:2501.00656, 3.2).
    """

    def __init__(self, num_heads: int, head_dim: int, config: NormConfig):
        self.offset, self.epsilon = OFFSETS[config.scale], config.epsilon
        shape, init = (num_heads, head_dim), Constant(1 - self.offset)
        self.scale = weight(shape, P("tensor", None), init, role="norm")

    def __call__(self, x_BTNH: jax.Array) -> jax.Array:
        """Normalise, in fp32, with one sum over `tensor` of a number a token; the result has x's
        dtype.
        """
        wide = x_BTNH.astype(jnp.float32)
        squares = lax.psum(jnp.sum(wide * wide, axis=(2, 3), keepdims=True), "tensor")
        count = wide.shape[2] * wide.shape[3] * lax.axis_size("tensor")
        wide *= lax.rsqrt(squares / count + self.epsilon)
        return (wide * (self.offset + self.scale[...].astype(jnp.float32))).astype(x_BTNH.dtype)


def build_head_norm(
    kind: str, num_heads: int, head_dim: int, config: NormConfig
) -> RMSNorm | AllHeadsNorm:
    """Build a norm with weights of queries or keys: `rmsnorm` of each head, `rmsnorm_all` of all."""
    if kind == "rmsnorm":
        return RMSNorm(head_dim, config, P(None))
    return AllHeadsNorm(num_heads, head_dim, config)


def unit_rms(x_BTNH: jax.Array, epsilon: float) -> jax.Array:
    """Divide each head's vector by its root mean square, in fp32; the result has x's dtype."""
    wide = x_BTNH.astype(jnp.float32)
    wide *= lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return wide.astype(x_BTNH.dtype)
