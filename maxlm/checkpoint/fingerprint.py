"""A number for the content of an array, the same on every mesh: array files carry no checksum of
their own.

    fingerprint(x) = sum over i of bits(x[i]) * weight(i)  mod 2^32,   weight(i) = mix(i) | 1

with i the global row-major index. Sums mod 2^32 do not depend on their order, so every sharding
gives the same number. The weights are odd: a single changed element always changes the sum (d * odd
= 0 mod 2^32 only for d = 0). They are scrambled by `mix`: exchanged or shifted elements change it
except with probability about 2^-31.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.sharding.host import to_device


@jax.jit
def fingerprint(array: jax.Array) -> jax.Array:
    """Return the fingerprint of `array` (any shape, sharding, memory and real dtype) as a
    replicated uint32 scalar.
    """
    array = to_device(array)
    index = jnp.zeros(array.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(array.ndim)):
        index += lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    return jnp.sum(_bits(array) * (_mix(index) | jnp.uint32(1)), dtype=jnp.uint32)


def _bits(array: jax.Array) -> jax.Array:
    """Reinterpret every element as a uint32, by zero extension of its bits; element-wise one to
    one.
    """
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    width = 8 * array.dtype.itemsize
    unsigned = lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}"))
    return unsigned.astype(jnp.uint32)


def _mix(index: jax.Array) -> jax.Array:
    """Scramble a uint32: the finaliser of MurmurHash3, a bijection."""
    index = (index ^ (index >> 16)) * jnp.uint32(0x85EBCA6B)
    index = (index ^ (index >> 13)) * jnp.uint32(0xC2B2AE35)
    return index ^ (index >> 16)
