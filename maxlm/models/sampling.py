"""Continue a text token by token, with the keys and values of earlier tokens kept (KV cache). On one device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from maxlm.layers.attention import Cache
from maxlm.models.decoder import Decoder
from maxlm.ops.attention import CHUNKED
from maxlm.products import einsum_fp32
from maxlm.sharding.fsdp import cast, vary
from maxlm.sharding.mesh import AXES
from maxlm.sharding.parameters import partition_specs

PREFILL_BLOCK = 64
"""Prompts are filled up to whole blocks, so that prompts of similar length share a compiled program."""
_ONE_DEVICE = P(AXES)
"""Every axis has size 1: the whole array, marked as varying over all axes, which it is."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: logits are divided by it; 0 takes the likeliest token.
      top_k: only the k likeliest tokens can be chosen.
      top_p: only the likeliest tokens that together have this probability can be chosen (arXiv:1904.09751).
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None


def choose(logits_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Choose the next tokens, int32 (B,)."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k is not None:
        kth_B = jax.lax.top_k(logits_BV, min(sampling.top_k, logits_BV.shape[1]))[0][:, -1]
        logits_BV = jnp.where(logits_BV >= kth_B[:, None], logits_BV, -jnp.inf)
    if sampling.top_p is not None:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
        # A token stays while those before it have less than top_p: the likeliest always does.
        kept_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV < sampling.top_p
        least_B = jnp.where(kept_BV, sorted_BV, jnp.inf).min(axis=-1)
        logits_BV = jnp.where(logits_BV >= least_B[:, None], logits_BV, -jnp.inf)
    return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)


def generate(
    decoder: Decoder,
    mesh: Mesh,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    seed: int,
    stop_id: int,
    compute_dtype: Any,
) -> Iterator[int]:
    """Yield up to `max_tokens` tokens that continue a prompt, without `stop_id`, at which it ends.

    Args:
      decoder: parameters on the one device of the mesh.
      mesh: all axes of size 1.
      prompt: token ids, BOS first.
      max_tokens: tokens to generate at most.
      sampling: how a token is chosen.
      seed: of the random choices; same seed, same text.
      stop_id: the end-of-document token.
      compute_dtype: of weights, activations and cache.
    """
    advance = make_advance(decoder, mesh, compute_dtype)
    pick = jax.jit(choose, static_argnums=2)
    padded = -(-len(prompt) // PREFILL_BLOCK) * PREFILL_BLOCK
    room = -(-(padded + max_tokens) // PREFILL_BLOCK) * PREFILL_BLOCK
    caches = empty_caches(decoder, room, compute_dtype)
    tokens = np.zeros((1, padded), np.int32)
    tokens[0, : len(prompt)] = prompt
    key = jax.random.key(seed)
    logits_BTV, caches = advance(decoder, jnp.asarray(tokens), caches, jnp.int32(0), jnp.int32(len(prompt) - 1))
    for index in range(max_tokens):
        token = pick(logits_BTV, jax.random.fold_in(key, index), sampling)
        if int(token[0]) == stop_id:
            return
        yield int(token[0])
        # What the filling of the prompt left in the cache is overwritten before any token can see it.
        logits_BTV, caches = advance(decoder, token[:, None], caches, jnp.int32(len(prompt) + index), jnp.int32(0))


def make_advance(declared: Decoder, mesh: Mesh, compute_dtype: Any) -> Callable[..., tuple[jax.Array, list[Cache]]]:
    """Return advance(decoder, tokens_BT, caches, start, last) -> (logits (B, V) fp32 of token `last`, caches).

    `start` is the index in the sequence of the first of the T tokens, `last` the one of the T whose logits are wanted.
    """

    def program(
        decoder: Decoder, tokens_BT: jax.Array, caches: list[Cache], start: jax.Array, last: jax.Array
    ) -> tuple[jax.Array, list[Cache]]:
        decoder = cast(vary(decoder), compute_dtype)
        positions_BT = jnp.broadcast_to(start + jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
        # One query against a cache is a product with a vector: nothing for a kernel of matrix products to win.
        info = decoder.sequence_info(positions_BT, jnp.ones_like(tokens_BT), CHUNKED)
        x_BTD, caches = decoder.decode(tokens_BT, info, caches, start)
        x_BD = jax.lax.dynamic_index_in_dim(x_BTD, last, axis=1, keepdims=False)
        logits_BV = einsum_fp32("BD,DV->BV", x_BD, decoder.output_DV())
        return logits_BV, caches

    specs = (partition_specs(declared), P(), _ONE_DEVICE, P(), P())
    mapped = jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=(_ONE_DEVICE, _ONE_DEVICE))
    return jax.jit(mapped, donate_argnums=2)


def empty_caches(decoder: Decoder, length: int, dtype: Any) -> list[Cache]:
    """Return zeroed caches for one sequence of up to `length` tokens.

    (1, S, K, H) for each block of the prefix, (L, 1, S, K, H) for each of the pattern.
    """
    model = decoder.model
    one = (1, length, model.num_kv_heads, model.head_dim)
    stacked = ((model.num_layers - len(model.prefix)) // len(model.pattern), *one)
    shapes = [*[one] * len(model.prefix), *[stacked] * len(model.pattern)]
    return [Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for shape in shapes]
