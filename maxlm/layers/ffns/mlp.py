"""Feed-forward layers, gated (SwiGLU, GeGLU; arXiv:2002.05202) and plain (ReLU, GELU)."""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from maxlm.config.layers.mlp import Activation, MlpConfig
from maxlm.config.model import ModelConfig
from maxlm.layers.layer import Layer
from maxlm.layers.sequence import SequenceInfo
from maxlm.ops.linear import linear
from maxlm.sharding.mesh import FSDP_AXES
from maxlm.sharding.parameters import Constant, Normal, weight

ACTIVATIONS = {
    "swiglu": jax.nn.silu,
    "geglu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
}
"""GELU by its tanh approximation, as GPT-2 does."""

GATED = ("swiglu", "geglu")


class Mlp(Layer):
    """Hidden units are split over `tensor`; the sequence is whole inside and split outside."""

    def __init__(self, model: ModelConfig, config: MlpConfig):
        dim, hidden = model.embed_dim, config.hidden_dim
        init, init_out = (
            Normal(model.init_std),
            Normal(model.init_std / (2 * model.num_layers) ** 0.5),
        )
        zeros = Constant(0.0)
        self.gated = config.activation in GATED
        self.up = weight((dim, hidden), P(FSDP_AXES, "tensor"), init, role="matrix", inputs=(0,))
        if self.gated:
            self.gate = weight(
                (dim, hidden), P(FSDP_AXES, "tensor"), init, role="matrix", inputs=(0,)
            )
        self.down = weight(
            (hidden, dim), P("tensor", FSDP_AXES), init_out, role="matrix", inputs=(0,)
        )
        if config.bias == "all":
            self.up_bias = weight((hidden,), P("tensor"), zeros, role="bias")
            if self.gated:
                self.gate_bias = weight((hidden,), P("tensor"), zeros, role="bias")
            self.down_bias = weight((dim,), P(FSDP_AXES), zeros, role="bias")
        self.config = config

    def __call__(self, x_BTD: jax.Array, info: SequenceInfo) -> tuple[jax.Array, None]:
        """Map each token on its own; (B, T / tensor, D) -> (B, T / tensor, D), and nothing to
        report.
        """
        y_BTD = info.leave(self.partial_sum(info.enter(x_BTD)))
        # After `leave`: every device would add the bias before its partial sum otherwise.
        return (y_BTD + self.down_bias[...] if self.config.bias == "all" else y_BTD), None

    def partial_sum(self, x_BTD: jax.Array) -> jax.Array:
        """Return what this device's hidden units contribute to whole sequences, (B, T, D) -> (B, T,
        D).
        """
        biased = self.config.bias == "all"
        hidden_BTF = linear(x_BTD, self.up[...])
        hidden_BTF = checkpoint_name(
            hidden_BTF + self.up_bias[...] if biased else hidden_BTF, "mlp_hidden"
        )
        gate_BTF = None
        if self.gated:
            gate_BTF = linear(x_BTD, self.gate[...])
            gate_BTF = checkpoint_name(
                gate_BTF + self.gate_bias[...] if biased else gate_BTF, "mlp_gate"
            )
        return linear(activate(self.config.activation, hidden_BTF, gate_BTF), self.down[...])


def activate(activation: Activation, hidden: jax.Array, gate: jax.Array | None) -> jax.Array:
    """Apply a nonlinearity to the hidden units, or to the gate that multiplies them."""
    function = ACTIVATIONS[activation]
    return function(hidden) if gate is None else function(gate) * hidden
