"""Exponential moving averages over the sequence: h_t = a h_(t-1) + (1 - a) u_t, anew in each
document.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from maxlm.config.layers.moving_average import MovingAverageConfig
from maxlm.config.model import ModelConfig
from maxlm.layers.layer import Mixer, StateArray
from maxlm.layers.sequence import SequenceInfo
from maxlm.ops.linear import linear
from maxlm.sharding.context import carry, join_chunks, own_chunks
from maxlm.sharding.mesh import DECODING_AXES, FSDP_AXES
from maxlm.sharding.parameters import Constant, Normal, weight


class OutputSums(NamedTuple):
    """Sums over tokens of what the layer adds."""

    squares: jax.Array
    tokens: jax.Array


class MovingAverage(Mixer):
    """Channels are split over `tensor`; states are carried over `context`."""

    def __init__(self, model: ModelConfig, config: MovingAverageConfig):
        dim, hidden = model.embed_dim, config.hidden_dim
        init, init_out = (
            Normal(model.init_std),
            Normal(model.init_std / (2 * model.num_layers) ** 0.5),
        )
        decay = Constant(math.log(config.first_decay / (1 - config.first_decay)))
        self.into = weight((dim, hidden), P(FSDP_AXES, "tensor"), init, role="matrix", inputs=(0,))
        self.decay = weight((hidden,), P("tensor"), decay, role="bias", fp32=True)
        self.out = weight(
            (hidden, dim), P("tensor", FSDP_AXES), init_out, role="matrix", inputs=(0,)
        )

    def __call__(self, x_BTD: jax.Array, info: SequenceInfo) -> tuple[jax.Array, OutputSums]:
        """Average within each document; (B, T / tensor, D) -> (B, T / tensor, D), and sums over the
        result.
        """
        u_BTF = linear(info.enter(x_BTD), self.into[...]).astype(jnp.float32)
        kept_BTF, added_BTF = self._recurrence(u_BTF, info.positions_BT > 0)
        kept, h = _averages(own_chunks(kept_BTF), own_chunks(added_BTF))
        last = kept[:, :, -1], h[:, :, -1]
        entering = carry(
            last, lambda chunk, state: chunk[0] * state + chunk[1], jnp.zeros_like(last[1][0])
        )
        h_BTF = checkpoint_name(join_chunks(h + kept * entering[:, :, None]), "averages")
        y_BTD = info.leave(linear(h_BTF.astype(x_BTD.dtype), self.out[...]))
        wide = y_BTD.astype(jnp.float32)
        return y_BTD, OutputSums(
            (wide * wide).mean(axis=2).sum(), jnp.ones_like(wide[..., 0]).sum()
        )

    def metrics(self, report: OutputSums) -> dict[str, jax.Array]:
        """Return the mean square of the output."""
        return {"average/square": report.squares / report.tokens}

    def decoding_state(self, batch_size: int, length: int, dtype: Any) -> StateArray:
        """Keep the averages."""
        del length, dtype
        return StateArray(
            (batch_size, self.decay.get_value().shape[-1]), jnp.float32, P(DECODING_AXES, "tensor")
        )

    def decode(
        self, x_BTD: jax.Array, info: SequenceInfo, state: jax.Array, start_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Go on from the averages; filling leaves them as they are."""
        del start_B
        u_BTF = linear(x_BTD, self.into[...]).astype(jnp.float32)
        real = (info.segment_ids_BT > 0)[..., None]
        kept, added = self._recurrence(u_BTF, info.positions_BT > 0)
        kept, added = jnp.where(real, kept, 1), jnp.where(real, added, 0)
        kept, h = (x[0] for x in _averages(kept[None], added[None]))
        h_BTF = h + kept * state[:, None]
        return info.leave(linear(h_BTF.astype(x_BTD.dtype), self.out[...])), h_BTF[:, -1]

    def _recurrence(self, u_BTF: jax.Array, goes_on_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return what each token multiplies the average with, and what it adds."""
        a_F = jax.nn.sigmoid(self.decay[...])
        return goes_on_BT[..., None] * a_F, (1 - a_F) * u_BTF


def _averages(kept: jax.Array, added: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return, for chunks (n, B, T, F) that nothing enters, products of what is kept, and the
    averages.
    """

    def both(one: Any, other: Any) -> Any:
        return one[0] * other[0], one[1] * other[0] + other[1]

    return lax.associative_scan(both, (kept, added), axis=2)
