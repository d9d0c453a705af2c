"""Rotary positions (arXiv:2104.09864, eq. 34): pairs of numbers are turned by angles that grow with
the position.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.config.positions.rope import RopePosition
from maxlm.ops.positions.frequencies import attention_factor, frequencies


def rotation(
    position: RopePosition, dim: int, positions_BT: jax.Array, length: int
) -> tuple[jax.Array, jax.Array]:
    """Return fp32 cosines and sines of every position, times the attention factor, (B, T, 1, pairs)
    each.

    Args:
      position: how fast which pair turns.
      dim: numbers of a query or key, of which all or the first `rotary_dim` are turned.
      positions_BT: int32.
      length: tokens of the whole sequence, see `SequenceInfo.length`.
    """
    # Rounded here alone: one fp32 rounding of a frequency is .006 radians at position 100,000.
    radians = frequencies(position, dim, length).astype(np.float32)
    angles, factor = (
        positions_BT[..., None].astype(jnp.float32) * radians,
        attention_factor(position),
    )
    cosines, sines = jnp.cos(angles), jnp.sin(angles)
    if factor != 1:
        cosines, sines = factor * cosines, factor * sines
    return cosines[:, :, None], sines[:, :, None]


def rotate(
    x_BTNH: jax.Array, cosines: jax.Array, sines: jax.Array, layout: str = "half"
) -> jax.Array:
    """Turn the first numbers of x, two for each angle, in fp32; result in x's dtype.

    With h pairs, pair i is (x[i], x[i + h]) in the layout `half`, (x[2i], x[2i + 1]) in
    `interleaved`. What lies behind the pairs stays as it is.
    """
    pairs = cosines.shape[-1]
    turned, rest = x_BTNH[..., : 2 * pairs].astype(jnp.float32), x_BTNH[..., 2 * pairs :]
    if layout == "interleaved":
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = jnp.split(turned, 2, axis=-1)
    both = first * cosines - second * sines, second * cosines + first * sines
    if layout == "interleaved":
        turned = jnp.stack(both, axis=-1).reshape(turned.shape)
    else:
        turned = jnp.concatenate(both, axis=-1)
    turned = turned.astype(x_BTNH.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned
