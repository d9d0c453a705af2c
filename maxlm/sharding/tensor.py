"""Tensor parallelism with sequence parallelism (arXiv:2205.05198): two functions, each the
transpose of the other.

Between blocks a device holds 1/tensor of its sequence; inside a mixer or ffn it holds the whole
sequence and 1/tensor of the heads or hidden units. With one device nothing moves, and nothing is
copied.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def enter(x_BTD: jax.Array) -> jax.Array:
    """All-gather the sequence over `tensor`: (B, T / tensor, D) -> (B, T, D)."""
    return (
        x_BTD
        if lax.axis_size("tensor") == 1
        else lax.all_gather(x_BTD, "tensor", axis=1, tiled=True)
    )


def leave(x_BTD: jax.Array) -> jax.Array:
    """Sum partial results over `tensor`, keep this device's part of the sequence: (B, T, D) -> (B,
    T / tensor, D).
    """
    return (
        x_BTD
        if lax.axis_size("tensor") == 1
        else lax.psum_scatter(x_BTD, "tensor", scatter_dimension=1, tiled=True)
    )


def once_of_tensor(x: jax.Array) -> jax.Array:
    """Return what is to be added to partial results, which `leave` sums: zeros on all `tensor`
    devices but the first.
    """
    if lax.axis_size("tensor") == 1:
        return x
    return jnp.where(lax.axis_index("tensor") == 0, x, 0)


def sequence_part(x_BT: jax.Array) -> jax.Array:
    """Cut this device's part of the sequence out of an array that every `tensor` device holds
    whole.
    """
    length = x_BT.shape[1] // lax.axis_size("tensor")
    return lax.dynamic_slice_in_dim(x_BT, lax.axis_index("tensor") * length, length, axis=1)


def same_everywhere(x: jax.Array) -> jax.Array:
    """Return what all `tensor` devices have computed alike as an array of which the type says so.

    A sum of which the first device gives all: exact, and nothing where there is one device.
    """
    return lax.psum(jnp.where(lax.axis_index("tensor") == 0, x, 0), "tensor")
