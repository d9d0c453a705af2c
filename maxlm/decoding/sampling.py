"""How the next token is chosen from its logits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

MAX_TOKENS = 1_000_000
"""What is kept of earlier tokens has room for all from the start."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      temperature: logits are divided by it; 0 takes the likeliest token.
      top_k: only the k likeliest tokens can be chosen.
      top_p: only the likeliest tokens that together have this probability can be chosen
        (arXiv:1904.09751).
      seed: of the random choices; same seed and prompts, same texts. One for each text: then what
        is drawn for a text does not depend on those beside it.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int | tuple[int, ...] = 0

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return all of them."""
        return self.seed if isinstance(self.seed, tuple) else (self.seed,)

    def keys(self, rows: int) -> jax.Array:
        """Return the key of a batch, or those of its rows, filled up to so many."""
        if not isinstance(self.seed, tuple):
            return jax.random.key(self.seed)
        seeds = np.zeros(rows, np.uint32)
        seeds[: len(self.seed)] = self.seed
        return jax.vmap(jax.random.key)(seeds)


def check_sampling(sampling: Sampling, max_tokens: int) -> Iterator[tuple[str, float, str]]:
    """Yield (setting, value, what it must be) for everything out of its range."""
    if not 0 <= sampling.temperature < math.inf:  # nan is neither
        text = "must be a number >= 0; 0 takes the likeliest token"
        yield "temperature", sampling.temperature, text
    for seed in sampling.seeds:
        if not 0 <= seed < 2**32:
            yield "seed", seed, "must be at least 0 and below 2**32"
    if sampling.top_k is not None and sampling.top_k < 1:
        yield "top_k", sampling.top_k, "must be at least 1"
    if sampling.top_p is not None and not 0 < sampling.top_p <= 1:
        yield "top_p", sampling.top_p, "must be above 0 and at most 1"
    if not 1 <= max_tokens <= MAX_TOKENS:
        yield "max_tokens", max_tokens, f"must be at least 1 and at most {MAX_TOKENS}"


def choose(logits_BV: jax.Array, key: jax.Array, sampling: Sampling, num_ids: int) -> jax.Array:
    """Choose the next tokens, int32 (B,), among the ids [0, num_ids): columns beyond only fill the
    vocabulary up. `key` is one for all, or one for each row.
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
    draw = jax.random.categorical if key.ndim == 0 else jax.vmap(jax.random.categorical)
    return draw(key, logits_BV).astype(jnp.int32)


def at_index(key: jax.Array, index: int) -> jax.Array:
    """Return the key, or keys, of a text's next token but `index`."""
    if key.ndim == 0:
        return jax.random.fold_in(key, index)
    return jax.vmap(lambda one: jax.random.fold_in(one, index))(key)
