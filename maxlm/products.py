"""Products of matrices with sums in fp32, written as every platform's compiler can run them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax


def einsum_fp32(letters: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiply two arrays as `jnp.einsum` does, with fp32 sums and an fp32 result; not to be
    differentiated.

    Of bf16 arrays the CPU's runtime has such products in some layouts alone (jaxlib 0.10:
    "Unsupported element type for DotThunk::Execute: BF16 x BF16 = F32"). There they are multiplied
    in fp32, in which products of bf16 numbers are exact. Decided when the program is lowered: one
    that is compiled for another platform keeps its bf16 products, and nothing of the decision is
    left when its compiler is done.
    """
    product = functools.partial(jnp.einsum, letters, preferred_element_type=jnp.float32)
    if x.dtype == y.dtype == jnp.float32:
        return product(x, y)

    def on_cpu(x: jax.Array, y: jax.Array) -> jax.Array:
        return product(x.astype(jnp.float32), y.astype(jnp.float32))

    result: jax.Array = lax.platform_dependent(x, y, cpu=on_cpu, default=product)
    return result
