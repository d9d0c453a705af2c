"""Token and position tables, and the output projection; the vocabulary is split over `tensor`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

from maxlm.config.model import ModelConfig
from maxlm.config.positions.embedded import LearnedPosition, SinusoidalPosition
from maxlm.layers.sequence import SequenceInfo
from maxlm.ops.positions.sinusoids import sinusoids
from maxlm.sharding.mesh import FSDP_AXES
from maxlm.sharding.parameters import Normal, weight
from maxlm.sharding.tensor import sequence_part


class Embedding(nnx.Module):
    """A vector per token times a factor, plus one per position, learned or fixed, where the model
    has them.
    """

    def __init__(self, model: ModelConfig):
        table, init = (model.vocab_size, model.embed_dim), Normal(model.init_std)
        # A lookup multiplies nothing; as the output projection it is a matrix that every token
        # meets.
        used = float(model.tie_embeddings)
        self.tokens = weight(table, P("tensor", FSDP_AXES), init, role="embedding", used=used)
        self.scale, self.position = model.embed_scale, model.position
        if isinstance(model.position, LearnedPosition):
            shape = (model.position.max_length, model.embed_dim)
            self.positions = weight(shape, P(None, FSDP_AXES), init, role="embedding")

    def __call__(self, tokens_BT: jax.Array, info: SequenceInfo) -> jax.Array:
        """Look tokens up, (B, T) -> (B, T / tensor, D); each device adds the rows of its part of
        the vocabulary.
        """
        table_VD = self.tokens[...]
        row = tokens_BT - lax.axis_index("tensor") * table_VD.shape[0]
        own = (row >= 0) & (row < table_VD.shape[0])
        x_BTD = info.leave(jnp.where(own[..., None], table_VD[jnp.where(own, row, 0)], 0))
        x_BTD *= self.scale
        positions_BT = sequence_part(info.positions_BT) if info.split else info.positions_BT
        if isinstance(self.position, LearnedPosition):
            x_BTD += self.positions[...][positions_BT]
        if isinstance(self.position, SinusoidalPosition):
            fixed_BTD = sinusoids(positions_BT, x_BTD.shape[-1], self.position.theta)
            x_BTD += fixed_BTD.astype(x_BTD.dtype)
        return x_BTD


class Head(nnx.Module):
    """The output projection of a model that does not tie it to the embedding."""

    def __init__(self, model: ModelConfig):
        shape, init = (model.embed_dim, model.vocab_size), Normal(model.init_std)
        self.output = weight(shape, P(FSDP_AXES, "tensor"), init, role="head", inputs=(0,))
