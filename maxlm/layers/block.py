"""One block of a decoder, and the two registries of what can stand in it."""

from __future__ import annotations

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxlm.config.schema import BlockConfig, ModelConfig
from maxlm.layers.attention import Attention, Cache
from maxlm.layers.mlp import Mlp
from maxlm.layers.moe import Moe, RouterStats
from maxlm.layers.norm import build_norm
from maxlm.layers.sequence import SequenceInfo

MIXERS = {"attention": Attention}
"""What moves information between tokens."""
FFNS = {"mlp": Mlp, "moe": Moe}
"""What works on each token alone, and returns beside the result what its router did, or None."""


class Block(nnx.Module):
    """Pre-norm residual block: x + mixer(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, model: ModelConfig, config: BlockConfig):
        self.mixer_norm = build_norm(model.norm, model.embed_dim)
        self.mixer = MIXERS[config.mixer.kind](model, config.mixer)
        self.ffn_norm = build_norm(model.norm, model.embed_dim)
        self.ffn = FFNS[config.ffn.kind](model, config.ffn)

    def __call__(self, x_BTD: jax.Array, info: SequenceInfo) -> tuple[jax.Array, RouterStats | None]:
        """(B, T / tensor, D) -> (B, T / tensor, D), and what the router did, if there is one."""
        with jax.named_scope("mixer"):
            x_BTD += checkpoint_name(self.mixer(self.mixer_norm(x_BTD), info), "mixer_out")
        with jax.named_scope("ffn"):
            y_BTD, stats = self.ffn(self.ffn_norm(x_BTD), info)
        return x_BTD + y_BTD, stats

    def decode(self, x_BTD: jax.Array, info: SequenceInfo, cache: Cache, start: jax.Array) -> tuple[jax.Array, Cache]:
        """Run the block on the newest tokens, with the mixer's memory of the earlier ones."""
        mixed, cache = self.mixer.decode(self.mixer_norm(x_BTD), info, cache, start)
        x_BTD += mixed
        return x_BTD + self.ffn(self.ffn_norm(x_BTD), info)[0], cache
