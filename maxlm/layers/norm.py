"""RMSNorm (arXiv:1910.07467) and LayerNorm (arXiv:1607.06450), computed in fp32.

What normalised vectors are multiplied with is a weight, or 1 + a weight (`scale: one_plus`). They
differ where weights are decayed, or rounded: around 0 there are more numbers than around 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

from maxlm.config.model import NormConfig
from maxlm.sharding.mesh import FSDP_AXES
from maxlm.sharding.parameters import Constant, weight

SPLIT = P(FSDP_AXES)

OFFSETS = {"plain": 0.0, "one_plus": 1.0}
"""What is added to the weight, by `scale`."""


class RMSNorm(nnx.Module):
    """Divide by the root mean square of the last dimension, then scale."""

    def __init__(self, dim: int, config: NormConfig, spec: P = SPLIT):
        self.offset = OFFSETS[config.scale]
        self.scale = weight((dim,), spec, Constant(1 - self.offset), role="norm")
        self.epsilon = config.epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last dimension, in fp32; the result has x's dtype."""
        wide = x.astype(jnp.float32)
        wide *= lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (wide * (self.offset + self.scale[...].astype(jnp.float32))).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Subtract the mean of the last dimension, divide by its standard deviation, then scale and
    shift.
    """

    def __init__(self, dim: int, config: NormConfig):
        self.offset = OFFSETS[config.scale]
        self.scale = weight((dim,), SPLIT, Constant(1 - self.offset), role="norm")
        self.bias = weight((dim,), SPLIT, Constant(0.0), role="norm")
        self.epsilon = config.epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last dimension, in fp32; the result has x's dtype."""
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        wide *= lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        scale, bias = self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        return (wide * (self.offset + scale) + bias).astype(x.dtype)


NORMS = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


def build_norm(config: NormConfig, dim: int) -> RMSNorm | LayerNorm:
    """Build the configured norm over vectors of `dim`."""
    return NORMS[config.kind](dim, config)
