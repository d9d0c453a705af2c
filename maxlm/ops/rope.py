"""Rotary positions (arXiv:2104.09864, eq. 34), in the half-split layout."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.config.rope import RopePosition, RopeScaling


def frequencies(position: RopePosition, head_dim: int) -> np.ndarray:
    """Return fp32 radians per position, (H / 2,)."""
    frequency = position.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if position.scaling is not None:
        frequency = _llama3_scaled(frequency, position.scaling)
    return frequency.astype(np.float32)


def rotation(
    position: RopePosition, head_dim: int, positions_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return fp32 cosines and sines of every position, (B, T, 1, H / 2) each."""
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies(position, head_dim)
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn each pair (x[i], x[i + H/2]) by its angle, in fp32; result in x's dtype."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


def _llama3_scaled(frequency: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Stretch wavelengths longer than the original context by `factor`, keep short ones, blend in
    between.
    """
    wavelength = 2 * math.pi / frequency
    turns = scaling.original_length / wavelength
    span = scaling.high_frequency_factor - scaling.low_frequency_factor
    blend = np.clip((turns - scaling.low_frequency_factor) / span, 0.0, 1.0)
    return (1 - blend) * frequency / scaling.factor + blend * frequency
