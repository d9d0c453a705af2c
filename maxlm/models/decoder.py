"""A decoder-only language model: embedding, stack of blocks, norm, output projection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from maxlm.config.model import ModelConfig
from maxlm.layers.block import Block, Reports
from maxlm.layers.embedding import Embedding, Head
from maxlm.layers.norm import build_norm
from maxlm.layers.sequence import SequenceInfo
from maxlm.layers.stack import BlockExecution, HeldRows, Stack, StackReports, build_stack, decode_stack, run_stack
from maxlm.sharding.fsdp import cast, gather
from maxlm.sharding.parameters import layers_of, named_parameters
from maxlm.sharding.stages import EMPTY, Layout, lay_out


class Decoder(nnx.Module):
    """Declares every parameter of a model; inside the shard_map, the per-device program over this device's part.

    Outside, the same object holds global arrays. Parameters are whole only between a gather and their use.
    """

    def __init__(self, model: ModelConfig, layout: Layout | None = None):
        self.embedding = Embedding(model)
        self.stack = build_stack(model, layout or lay_out(model.repeats))
        self.norm = build_norm(model.norm, model.embed_dim)
        if not model.tie_embeddings:
            self.head = Head(model)
        self.model = model

    def __call__(
        self, tokens_BT: jax.Array, info: SequenceInfo, execution: BlockExecution
    ) -> tuple[jax.Array, StackReports]:
        """From tokens to last hidden states: (B, T) -> (B, T / tensor, D), normalised; and what layers report."""
        info = self.prepared(info)
        x_BTD, reports = self.run_blocks(self.embed(tokens_BT, info), info, execution)
        return self.norm(x_BTD), reports

    def prepared(self, info: SequenceInfo) -> SequenceInfo:
        """Work out once what blocks ask for."""
        asked = (block.prepare(info) for segment in self.stack for block in segment)
        return info._replace(prepared={name: value for answers in asked for name, value in answers.items()})

    def embed(self, tokens_BT: jax.Array, info: SequenceInfo) -> jax.Array:
        """Look tokens up in the whole embedding, (B, T / tensor, D)."""
        with jax.named_scope("embedding"):
            return self.embedding(tokens_BT, info)

    def run_blocks(
        self,
        x_BTD: jax.Array,
        info: SequenceInfo,
        execution: BlockExecution,
        held: Sequence[HeldRows] | None = None,
    ) -> tuple[jax.Array, StackReports]:
        """Run all blocks, or the chunk of them that is there; see `run_stack`."""
        with jax.named_scope("stack"):
            return run_stack(self.stack, x_BTD, info, execution, held)

    def penalty(self, reports: StackReports) -> jax.Array | float:
        """Return this device's part of what layers add to the objective."""
        return sum((block.penalty(own) for _, block, own in self._reporting(reports)), 0.0)

    def layer_metrics(self, reports: StackReports) -> dict[str, dict[str, jax.Array]]:
        """Return the metrics of each block that has some, by its segment and place, a number for each row."""
        return {place: block.metrics(own) for place, block, own in self._reporting(reports)}

    def by_layer(self, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Name what `layer_metrics` returned by the layer's number: `moe/load_max` of layer 3 is `moe/3/load_max`."""
        values: dict[str, float] = {}
        for place, of_block in metrics.items():
            segment, number = map(int, place.split("/"))
            layers = layers_of(named_parameters(self.stack[segment][number])[0][1]) or ()
            for name, of_rows in of_block.items():
                group, _, rest = name.partition("/")
                pairs = zip(layers, of_rows, strict=True)
                values |= {f"{group}/{layer}/{rest}": float(value) for layer, value in pairs if layer != EMPTY}
        return values

    def after_step(self, before: Decoder, reports: StackReports) -> Decoder:
        """Return the decoder with what layers' own rules change after a step; the optimizer has moved the rest.

        Args:
          before: the decoder before the step.
          reports: of the step, summed over all devices.
        """
        stack = [
            nnx.List([new.after_step(old, own) for new, old, own in zip(*segments, strict=True)])
            for segments in zip(self.stack, before.stack, reports, strict=True)
        ]
        return self.with_stack(nnx.List(stack))

    def _reporting(self, reports: StackReports) -> Iterator[tuple[str, Block, Reports]]:
        """Yield the blocks with a report."""
        for number, (segment, of_segment) in enumerate(zip(self.stack, reports, strict=True)):
            for place, (block, own) in enumerate(zip(segment, of_segment, strict=True)):
                if own:
                    yield f"{number}/{place}", block, own

    def decode(
        self, tokens_BT: jax.Array, info: SequenceInfo, states: Any, start_B: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Return normalised last hidden states of the newest tokens, (B, T, D), and the mixers' new states."""
        info = self.prepared(info)
        x_BTD, states = decode_stack(self.stack, self.embedding(tokens_BT, info), info, states, start_B)
        return self.norm(x_BTD), states

    def with_stack(self, stack: Stack) -> Decoder:
        """Return the decoder around another stack, or around none: `nnx.List([])`."""
        copy: Decoder = jax.tree.map(lambda leaf: leaf, self)
        copy.stack = stack
        return copy

    def whole_outside_stack(self, compute_dtype: Any) -> Decoder:
        """Return the decoder with everything but the stack cast and gathered."""
        copy = self.with_stack(self.stack)
        copy.embedding = gather(cast(self.embedding, compute_dtype))
        copy.norm = gather(cast(self.norm, compute_dtype))
        if not self.model.tie_embeddings:
            copy.head = gather(cast(self.head, compute_dtype))
        return copy

    def output_DV(self) -> jax.Array:
        """Return this device's columns of the output projection."""
        return self.embedding.tokens[...].T if self.model.tie_embeddings else self.head.output[...]
