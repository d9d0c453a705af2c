"""Token and position tables, and the output projection; the vocabulary is split over `tensor`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import ModelConfig
from maxlm.layers.sequence import SequenceInfo
from maxlm.sharding.mesh import FSDP_AXES
from maxlm.sharding.parameters import Normal, weight
from maxlm.sharding.tensor import leave, sequence_part


class Embedding(nnx.Module):
    """A vector per token, plus one per position where the model learns positions."""

    def __init__(self, model: ModelConfig):
        self.tokens = weight((model.vocab_size, model.embed_dim), P("tensor", FSDP_AXES), Normal(model.init_std))
        self.learned_positions = model.position.kind == "learned"
        if model.position.kind == "learned":
            shape = (model.position.max_length, model.embed_dim)
            self.positions = weight(shape, P(None, FSDP_AXES), Normal(model.init_std))

    def __call__(self, tokens_BT: jax.Array, info: SequenceInfo) -> jax.Array:
        """Look tokens up, (B, T) -> (B, T / tensor, D); each device adds the rows of its part of the vocabulary."""
        table_VD = self.tokens[...]
        row = tokens_BT - lax.axis_index("tensor") * table_VD.shape[0]
        own = (row >= 0) & (row < table_VD.shape[0])
        x_BTD = leave(jnp.where(own[..., None], table_VD[jnp.where(own, row, 0)], 0))
        if self.learned_positions:
            x_BTD += self.positions[...][sequence_part(info.positions_BT)]
        return x_BTD


class Head(nnx.Module):
    """The output projection of a model that does not tie it to the embedding."""

    def __init__(self, model: ModelConfig):
        self.output = weight((model.embed_dim, model.vocab_size), P(FSDP_AXES, "tensor"), Normal(model.init_std))
