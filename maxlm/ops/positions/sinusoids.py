"""Sines and cosines of positions (arXiv:1706.03762, 3.5)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.ops.positions.frequencies import plain


def sinusoids(positions_BT: jax.Array, dim: int, theta: float) -> jax.Array:
    """Return fp32 (B, T, D): number 2i is sin(p theta^(-2i / D)), number 2i + 1 the cosine."""
    radians = plain(theta, dim).astype(np.float32)
    angles = positions_BT[..., None].astype(jnp.float32) * radians
    both = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return both.reshape(*positions_BT.shape, dim)
