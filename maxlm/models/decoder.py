"""A decoder-only language model: embedding, stack of blocks, norm, output projection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from maxlm.config.model import ModelConfig, MupParametrisation
from maxlm.layers.block import Block, Reports
from maxlm.layers.embedding import Embedding, Head
from maxlm.layers.layer import Streams
from maxlm.layers.mtp import build_modules, run_module
from maxlm.layers.norm import build_norm
from maxlm.layers.sequence import SequenceInfo
from maxlm.layers.stack import (
    BlockExecution,
    Carried,
    HeldRows,
    Stack,
    StackReports,
    build_stack,
    decode_stack,
    run_stack,
)
from maxlm.models.parametrisation import scale_initial_values, twice_as_wide
from maxlm.ops.cross_entropy import LogitRule
from maxlm.products import einsum_fp32
from maxlm.sharding.fsdp import cast, gather
from maxlm.sharding.parameters import layers_of, named_parameters, stack_layers
from maxlm.sharding.stages import EMPTY, Layout, lay_out


class Decoder(nnx.Module):
    """Declares every parameter of a model; inside the shard_map, the per-device program over this
    device's part.

    Outside, the same object holds global arrays. Parameters are whole only between a gather and
    their use.
    """

    def __init__(self, model: ModelConfig, layout: Layout | None = None):
        self.embedding = Embedding(model)
        layout = layout or lay_out(model.repeats)
        self.stack = build_stack(model, layout)
        self.norm = build_norm(model.norm, model.embed_dim)
        self.mtp = build_modules(model, layout)
        if not model.tie_embeddings:
            self.head = Head(model)
        self.model = model
        if isinstance(model.parametrisation, MupParametrisation):
            scale_initial_values(self, Decoder(twice_as_wide(model)), model.width_factor)

    def __call__(
        self,
        tokens_BT: jax.Array,
        info: SequenceInfo,
        execution: BlockExecution,
        carried: Carried | None = None,
    ) -> tuple[jax.Array, StackReports, Carried]:
        """From tokens to last hidden states, normalised.

        Args:
          tokens_BT: this device's tokens.
          info: where they stand.
          execution: how blocks are run.
          carried: what mixers carried over from the last step, if any do.

        Returns:
          hidden states (B, T / tensor, D), what layers report, and what mixers carry to the next
          step.
        """
        info = self.prepared(info)
        streams = self.embed(tokens_BT, info)
        streams, reports, to_next = self.run_blocks(streams, info, execution, carried=carried)
        return self.norm(streams.x_BTD), reports, to_next

    def further(
        self,
        hidden_BTD: jax.Array,
        tokens_DBT: Sequence[jax.Array],
        info: SequenceInfo,
        execution: BlockExecution,
    ) -> tuple[list[jax.Array], StackReports]:
        """From the last hidden states to those that predict further tokens, a depth after the other.

        Args:
          hidden_BTD: of the stack, normalised.
          tokens_DBT: tokens 1, 2, ... places behind the model's.
          info: where the model's tokens stand.
          execution: how the modules are run: as blocks are.

        Returns:
          normalised hidden states of each depth, (B, T / tensor, D), and what the modules' layers
          report, to go behind what the stack's do.
        """
        info = self.prepared(info)

        run = run_module(execution, info)
        hidden, reports = [], []
        for module, tokens_BT in zip(self.mtp, tokens_DBT, strict=True):
            row = jax.tree.map(lambda x: x[0], module)
            hidden_BTD, report = run(row, (hidden_BTD, self.embedding(tokens_BT, info)))
            hidden.append(hidden_BTD)
            reports.append(jax.tree.map(lambda x: x[None], report))
        return hidden, [reports] if reports else []

    def segments(self) -> list[list[Block]]:
        """Return the blocks of each segment, and behind them those of `model.mtp`'s modules, if it
        has some.
        """
        behind = [[module.block for module in self.mtp]] if self.mtp else []
        return [*map(list, self.stack), *behind]

    def prepared(self, info: SequenceInfo) -> SequenceInfo:
        """Work out once what blocks ask for."""
        asked = (block.prepare(info) for segment in self.segments() for block in segment)
        return info._replace(
            prepared={name: value for answers in asked for name, value in answers.items()}
        )

    def embed(self, tokens_BT: jax.Array, info: SequenceInfo) -> Streams:
        """Look tokens up in the whole embedding: what the first block takes."""
        with jax.named_scope("embedding"):
            x_BTD = self.embedding(tokens_BT, info)
            mixers = (block.mixer for segment in self.stack for block in segment if block.has_mixer)
            starts = (mixer.shared_at_start(x_BTD) for mixer in mixers)
            return Streams(x_BTD, next((start for start in starts if jax.tree.leaves(start)), ()))

    def run_blocks(
        self,
        streams: Streams,
        info: SequenceInfo,
        execution: BlockExecution,
        *,
        held: Sequence[HeldRows] | None = None,
        carried: Carried | None = None,
    ) -> tuple[Streams, StackReports, Carried]:
        """Run all blocks, or the chunk of them that is there; see `run_stack`."""
        with jax.named_scope("stack"):
            return run_stack(self.stack, streams, info, execution, held, carried)

    def carried_state(self, batch_size: int) -> Carried:
        """Declare what mixers carry over from step to step, by segment and place, a row for each of
        its layers.
        """
        return [
            [
                stack_layers(
                    block.carried_state(batch_size), layers_of(named_parameters(block)[0][1]) or ()
                )
                for block in segment
            ]
            for segment in self.stack
        ]

    def penalty(self, reports: StackReports) -> jax.Array | float:
        """Return this device's part of what layers add to the objective."""
        return sum((block.penalty(own) for _, block, own in self._reporting(reports)), 0.0)

    def layer_metrics(self, reports: StackReports) -> dict[str, dict[str, jax.Array]]:
        """Return the metrics of each block that has some, by its segment and place, a number for
        each row.
        """
        return {place: block.metrics(own) for place, block, own in self._reporting(reports)}

    def by_layer(self, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Name what `layer_metrics` returned by the layer's number: `moe/load_max` of layer 3 is
        `moe/3/load_max`.
        """
        values: dict[str, float] = {}
        for place, of_block in metrics.items():
            segment, number = map(int, place.split("/"))
            layers = layers_of_block(self.segments()[segment][number])
            for name, of_rows in of_block.items():
                group, _, rest = name.partition("/")
                pairs = zip(layers, of_rows, strict=True)
                values |= {
                    f"{group}/{layer}/{rest}": float(value)
                    for layer, value in pairs
                    if layer != EMPTY
                }
        return values

    def after_step(self, before: Decoder, reports: StackReports) -> Decoder:
        """Return the decoder with what layers' own rules change after a step; the optimizer has
        moved the rest.

        Args:
          before: the decoder before the step.
          reports: of the step, summed over all devices.
        """
        moved = [
            nnx.List([new.after_step(old, own) for new, old, own in zip(*segments, strict=True)])
            for segments in zip(self.segments(), before.segments(), reports, strict=True)
        ]
        count = len(self.stack)
        copy = self.with_stack(nnx.List(moved[:count]))
        for module, block in zip(copy.mtp, *moved[count:], strict=True) if self.mtp else ():
            module.block = block
        return copy

    def _reporting(self, reports: StackReports) -> Iterator[tuple[str, Block, Reports]]:
        """Yield the blocks with a report."""
        pairs = zip(self.segments(), reports, strict=True)
        for number, (segment, of_segment) in enumerate(pairs):
            for place, (block, own) in enumerate(zip(segment, of_segment, strict=True)):
                if own:
                    yield f"{number}/{place}", block, own

    def decode(
        self, tokens_BT: jax.Array, info: SequenceInfo, states: Any, start_B: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Return normalised last hidden states of the newest tokens, (B, T, D), and the mixers' new
        states.
        """
        info = self.prepared(info)
        streams, states = decode_stack(
            self.stack, self.embed(tokens_BT, info), info, states, start_B
        )
        return self.norm(streams.x_BTD), states

    def with_stack(self, stack: Stack) -> Decoder:
        """Return the decoder around another stack, or around none: `nnx.List([])`."""
        copy: Decoder = jax.tree.map(lambda leaf: leaf, self)
        copy.stack = stack
        return copy

    def with_modules(self, modules: nnx.List) -> Decoder:
        """Return the decoder with other modules for further tokens."""
        copy = self.with_stack(self.stack)
        copy.mtp = modules
        return copy

    def without_modules(self) -> Decoder:
        """Return the decoder that predicts the next token alone."""
        return self.with_modules(nnx.List([]))

    def whole_outside_stack(self, compute_dtype: Any) -> Decoder:
        """Return the decoder with everything but the stack cast and gathered; the modules behind it
        are gathered where they run, as its blocks are.
        """
        copy = self.with_stack(self.stack)
        copy.embedding = gather(cast(self.embedding, compute_dtype))
        copy.norm = gather(cast(self.norm, compute_dtype))
        if not self.model.tie_embeddings:
            copy.head = gather(cast(self.head, compute_dtype))
        return copy

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Return the fp32 logits of normalised last hidden states, (..., D) -> (..., V): this
        device's columns; not to be differentiated.
        """
        products = einsum_fp32("...D,DV->...V", hidden, self.output_DV())
        return logit_rule_of(self.model).logits(products)

    def output_DV(self) -> jax.Array:
        """Return this device's columns of the output projection."""
        return self.embedding.tokens[...].T if self.model.tie_embeddings else self.head.output[...]


def logit_rule_of(model: ModelConfig) -> LogitRule:
    """Return how a model's logits come from products with its output projection."""
    return LogitRule(model.logit_scale / model.width_factor, model.logit_softcap)


def layers_of_block(block: Block) -> tuple[int, ...]:
    """Return the number in the model of the layer that each row of a stacked block holds."""
    return layers_of(named_parameters(block)[0][1]) or ()
