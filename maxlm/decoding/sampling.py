"""How the next token is chosen from its logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: logits are divided by it; 0 takes the likeliest token.
      top_k: only the k likeliest tokens can be chosen.
      top_p: only the likeliest tokens that together have this probability can be chosen
        (arXiv:1904.09751).
      seed: of the random choices; same seed and prompts, same texts.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


def choose(logits_BV: jax.Array, key: jax.Array, sampling: Sampling, num_ids: int) -> jax.Array:
    """Choose the next tokens, int32 (B,), among the ids [0, num_ids): columns beyond only fill the
    vocabulary up.
    """
    logits_BV = logits_BV[:, :num_ids]
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
