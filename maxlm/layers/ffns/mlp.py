"""Feed-forward layers, gated (SwiGLU, GeGLU; arXiv:2002.05202) and plain (ReLU, its square, GELU)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from maxlm.config.layers.mlp import Activation, MlpConfig
from maxlm.config.model import ModelConfig
from maxlm.layers.layer import Layer
from maxlm.layers.sequence import SequenceInfo
from maxlm.ops.linear import computed_once, linear
from maxlm.sharding.mesh import FSDP_AXES
from maxlm.sharding.parameters import Constant, Normal, weight
from maxlm.sharding.tensor import once_of_tensor

GELU_TANH = functools.partial(jax.nn.gelu, approximate=True)
GELU_EXACT = functools.partial(jax.nn.gelu, approximate=False)

PLAIN: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "relu2": lambda hidden: jnp.square(jax.nn.relu(hidden)),
    "gelu_tanh": GELU_TANH,
    "gelu_exact": GELU_EXACT,
}
"""What is done to hidden units."""


def _swiglu_clamped(gate: jax.Array, hidden: jax.Array) -> jax.Array:
    """Return (hidden + 1) gate sigmoid(1.702 gate), both clamped to 7, so that bfloat16 holds them;
    a large negative gate is left: its sigmoid is 0 (arXiv:2508.10925).
    """
    gate, hidden = jnp.minimum(gate, 7.0), jnp.clip(hidden, -7.0, 7.0)
    return (hidden + 1) * gate * jax.nn.sigmoid(1.702 * gate)


GATED: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "swiglu": lambda gate, hidden: jax.nn.silu(gate) * hidden,
    "swiglu_clamped": _swiglu_clamped,
    "geglu_tanh": lambda gate, hidden: GELU_TANH(gate) * hidden,
    "geglu_exact": lambda gate, hidden: GELU_EXACT(gate) * hidden,
}
"""What a gate does to hidden units."""


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
        return info.leave(self.partial_sum(info.enter(x_BTD))), None

    def partial_sum(self, x_BTD: jax.Array) -> jax.Array:
        """Return what this device's hidden units contribute to whole sequences, (B, T, D) -> (B, T,
        D).
        """
        biased = self.config.bias == "all"
        hidden_BTF = linear(x_BTD, self.up[...], self.up_bias[...] if biased else None)
        hidden_BTF = checkpoint_name(computed_once(hidden_BTF), "mlp_hidden")
        gate_BTF = None
        if self.gated:
            gate_BTF = linear(x_BTD, self.gate[...], self.gate_bias[...] if biased else None)
            gate_BTF = checkpoint_name(computed_once(gate_BTF), "mlp_gate")
        active_BTF = computed_once(activate(self.config.activation, hidden_BTF, gate_BTF))
        bias_D = once_of_tensor(self.down_bias[...]) if biased else None
        return linear(active_BTF, self.down[...], bias_D)


def activate(activation: Activation, hidden: jax.Array, gate: jax.Array | None) -> jax.Array:
    """Apply a nonlinearity to the hidden units, or let the gate act on them."""
    return PLAIN[activation](hidden) if gate is None else GATED[activation](gate, hidden)
