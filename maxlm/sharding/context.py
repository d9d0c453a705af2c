"""Which tokens each device of the `context` axis holds: two chunks, one early and one late (zigzag).

With c devices a sequence is cut into 2c chunks, and device i works on chunks i and 2c - 1 - i, one after the other.
Under a causal mask chunk j sees j + 1 chunks, so every device's two see 2c + 1 together: nobody waits for the device
with the end of the sequence. All else in the model works on single tokens, to which their order means nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def zigzag(x_BT: jax.Array) -> jax.Array:
    """Turn this device's contiguous part of the sequence, chunks 2i and 2i + 1, into chunks i and 2c - 1 - i.

    Two permutes over `context` of half of x each: the even chunks 0, 2, ... go to different devices, and the odd ones
    too. Meant for the small integers of a batch, once a step.
    """
    devices = lax.axis_size("context")
    if devices == 1:
        return x_BT
    even, odd = split_chunks(x_BT)
    even = lax.ppermute(even, "context", [(i, _holder(2 * i, devices)) for i in range(devices)])
    odd = lax.ppermute(odd, "context", [(i, _holder(2 * i + 1, devices)) for i in range(devices)])
    # Of chunks i and 2c - 1 - i one is even and one is odd.
    early_is_even = lax.axis_index("context") % 2 == 0
    return jnp.where(early_is_even, jnp.concatenate([even, odd], axis=1), jnp.concatenate([odd, even], axis=1))


def chunk_numbers(device: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the numbers, counted along the sequence, of the two chunks that a device of `context` holds."""
    return device, 2 * lax.axis_size("context") - 1 - device


def places(x_BT: jax.Array) -> jax.Array:
    """Return where in the sequence this device's tokens are, int32 like (B, T), counted from 0."""
    index, half = jnp.arange(x_BT.shape[1], dtype=jnp.int32), x_BT.shape[1] // 2
    if lax.axis_size("context") > 1:
        early, late = chunk_numbers(lax.axis_index("context"))
        index += jnp.where(index < half, early, late - 1) * half
    return jnp.broadcast_to(index, x_BT.shape)


def split_chunks(x_BT: jax.Array, axis: int = 1) -> jax.Array:
    """Put this device's early and its late chunk side by side: (B, T, ...) -> (2, B, T / 2, ...)."""
    return jnp.stack(jnp.split(x_BT, 2, axis=axis))


def join_chunks(x_2BT: jax.Array, axis: int = 1) -> jax.Array:
    """Undo `split_chunks`."""
    return jnp.concatenate([x_2BT[0], x_2BT[1]], axis=axis)


def in_order(x_BS: jax.Array) -> jax.Array:
    """Put a whole sequence, gathered as (0, 2c - 1, 1, 2c - 2, ...), in its order; (B, S, ...) -> (B, S, ...)."""
    devices = lax.axis_size("context")
    x = x_BS.reshape(x_BS.shape[0], devices, 2, -1, *x_BS.shape[2:])
    return jnp.stack([x[:, :, 0], x[:, ::-1, 1]], axis=1).reshape(x_BS.shape)


def zigzag_order(x_BS: jax.Array) -> jax.Array:
    """Undo `in_order`."""
    devices = lax.axis_size("context")
    x = x_BS.reshape(x_BS.shape[0], 2, devices, -1, *x_BS.shape[2:])
    return jnp.stack([x[:, 0], x[:, 1, ::-1]], axis=2).reshape(x_BS.shape)


def _holder(chunk: int, devices: int) -> int:
    return min(chunk, 2 * devices - 1 - chunk)
