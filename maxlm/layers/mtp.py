"""Modules that predict further tokens (arXiv:2412.19437, section 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from maxlm.config.model import ModelConfig, MtpConfig
from maxlm.layers.block import Block, Reports
from maxlm.layers.layer import Streams
from maxlm.layers.norm import build_norm
from maxlm.layers.sequence import SequenceInfo
from maxlm.layers.stack import BlockExecution, recomputed
from maxlm.ops.linear import linear
from maxlm.sharding.mesh import FSDP_AXES
from maxlm.sharding.parameters import Normal, stack_layers, weight
from maxlm.sharding.stages import Layout


class FurtherToken(nnx.Module):
    """From what predicts the token after the next known one to what predicts the one after that.

    With h(k) what the head sees of depth k (k = 0: of the stack) at token t, and e the embedding:

      h(k) = norm(block(project [embed_norm(e(token t + k)); hidden_norm(h(k - 1))]))

    The paper writes the two halves the other way round; published weights have them like this. That
    a module takes normalised states, also those of the stack, is the published code's reading.
    """

    def __init__(self, model: ModelConfig, config: MtpConfig):
        self.embed_norm = build_norm(model.norm, model.embed_dim)
        self.hidden_norm = build_norm(model.norm, model.embed_dim)
        # Whole on every `tensor` device: each multiplies its part of the sequence with it.
        shape, init = (2 * model.embed_dim, model.embed_dim), Normal(model.init_std)
        self.project = weight(shape, P(FSDP_AXES, None), init, role="matrix", inputs=(0,))
        self.block = Block(model, config.block)
        self.norm = build_norm(model.norm, model.embed_dim)

    def __call__(
        self, hidden_BTD: jax.Array, embedded_BTD: jax.Array, info: SequenceInfo
    ) -> tuple[jax.Array, Reports]:
        """Return normalised hidden states (B, T / tensor, D), and what the block's layers report.

        A token t whose token t + k is in another document gets a state that nothing is learned
        from: no token of its document that comes later, and none that has a target, sees it.

        Args:
          hidden_BTD: of the depth before, normalised.
          embedded_BTD: of the tokens k places further.
          info: where the tokens stand.
        """
        halves = self.embed_norm(embedded_BTD), self.hidden_norm(hidden_BTD)
        x_BTD = linear(jnp.concatenate(halves, axis=-1), self.project[...])
        shared = self.block.mixer.shared_at_start(x_BTD) if self.block.has_mixer else ()
        streams, reports, _ = self.block(Streams(x_BTD, shared), info)
        return self.norm(streams.x_BTD), reports


def build_modules(model: ModelConfig, layout: Layout) -> nnx.List:
    """Declare the modules of `model.mtp`, each a row on every stage, of which the last one's holds
    it: the layer behind those before it.
    """
    if model.mtp is None:
        return nnx.List([])
    layers = range(model.num_layers, model.num_layers + model.mtp.depth)
    return nnx.List(
        [
            stack_layers(FurtherToken(model, model.mtp), layout.module_rows(layer))
            for layer in layers
        ]
    )


def run_module(
    execution: BlockExecution, info: SequenceInfo
) -> Callable[[FurtherToken, tuple[jax.Array, jax.Array]], tuple[jax.Array, Reports]]:
    """Return run(module, (hidden_BTD, embedded_BTD)), which treats a module as blocks are treated."""

    def call(module: FurtherToken, inputs: tuple[jax.Array, jax.Array]) -> Any:
        return module(*inputs, info)

    return recomputed(execution, call, prevent_cse=True)
