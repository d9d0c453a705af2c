"""A feed-forward layer with a report, a penalty, a metric, and a rule of its own after each step."""

from __future__ import annotations

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from maxlm.config.layers.centred import CentredConfig
from maxlm.config.model import ModelConfig
from maxlm.layers.layer import Layer
from maxlm.layers.sequence import SequenceInfo
from maxlm.ops.linear import linear
from maxlm.sharding.mesh import FSDP_AXES, REPORT_AXES
from maxlm.sharding.parameters import Constant, Normal, weight, with_value


class InputSums(NamedTuple):
    """Sums over tokens: the inputs, their squared distances from the centre, and how many they are."""

    inputs_D: jax.Array
    distance: jax.Array
    tokens: jax.Array


class Centred(Layer):
    """Hidden units are split over `tensor`; the centre is whole everywhere."""

    def __init__(self, model: ModelConfig, config: CentredConfig):
        dim, hidden = model.embed_dim, config.hidden_dim
        init, init_out = (
            Normal(model.init_std),
            Normal(model.init_std / (2 * model.num_layers) ** 0.5),
        )
        self.centre = weight((dim,), P(None), Constant(0.0), role="state", fp32=True)
        self.up = weight((dim, hidden), P(FSDP_AXES, "tensor"), init, role="matrix", inputs=(0,))
        self.down = weight(
            (hidden, dim), P("tensor", FSDP_AXES), init_out, role="matrix", inputs=(0,)
        )
        self.config = config

    def __call__(self, x_BTD: jax.Array, info: SequenceInfo) -> tuple[jax.Array, InputSums]:
        """Map each token on its own; (B, T / tensor, D) -> (B, T / tensor, D), and sums over the
        inputs.
        """
        wide = x_BTD.astype(jnp.float32)
        from_centre = wide - lax.stop_gradient(self.centre[...])
        distances_BT = (from_centre * from_centre).sum(axis=2)
        inputs_D = lax.stop_gradient(wide).sum(axis=(0, 1))
        report = InputSums(inputs_D, distances_BT.sum(), jnp.ones_like(distances_BT).sum())
        hidden_BTF = linear(info.enter(from_centre.astype(x_BTD.dtype)), self.up[...])
        hidden_BTF = checkpoint_name(hidden_BTF, "centred_hidden")
        return info.leave(linear(jax.nn.relu(hidden_BTF), self.down[...])), report

    def penalty(self, report: InputSums) -> jax.Array:
        """Return this device's part of the mean squared distance of each layer, times its weight."""
        tokens_L = jnp.maximum(lax.psum(report.tokens, REPORT_AXES), 1)
        return self.config.penalty * lax.psum((report.distance / tokens_L).sum(), "tensor")

    def metrics(self, report: InputSums) -> dict[str, jax.Array]:
        """Return the mean squared distance."""
        return {"centred/distance": report.distance / report.tokens}

    def after_step(self, before: Self, report: InputSums) -> Self:
        """Move the centre towards the mean of the step's inputs."""
        copy: Self = jax.tree.map(lambda leaf: leaf, self)
        old_LD = before.centre[...]
        mean_LD = report.inputs_D / jnp.maximum(report.tokens, 1)[:, None]
        copy.centre = with_value(self.centre, old_LD + self.config.rate * (mean_LD - old_LD))
        return copy
