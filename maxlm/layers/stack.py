"""The layer stack: segments one after the other, each a scan over repetitions of its pattern of
blocks.

FSDP lives here, and nowhere else in the model. A stack is a list of segments, a segment a list of
the blocks of its pattern, and each block has a row of parameters for every repetition
(`maxlm.sharding.stages`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from maxlm.config.model import ModelConfig
from maxlm.config.schema import TrainConfig
from maxlm.jax_versions import vary_over, varying_axes
from maxlm.layers.block import Block, Reports
from maxlm.layers.layer import Streams
from maxlm.layers.sequence import SequenceInfo
from maxlm.sharding.fsdp import is_parameter_gather
from maxlm.sharding.host import HOST_MEMORY
from maxlm.sharding.parameters import layers_of, named_parameters, stack_layers
from maxlm.sharding.pipeline import on_some_stages
from maxlm.sharding.stages import EMPTY, Layout

Gather = Callable[[Any], Any]
Segment = nnx.List  # of blocks
Stack = nnx.List  # of segments
StackReports = list[list[Reports]]
"""What blocks report, by segment and place in its pattern, with a row for every repetition."""
Carried = list[list[Any]]
"""What mixers carry over from step to step, likewise."""

_BLOCK_INPUT = "block_input"


class Remat(NamedTuple):
    """What the backward pass of a block finds of its forward pass; the rest it computes again.

    Attributes:
      everything: all there was, on the device.
      on_device: named activations that are kept, besides the block's input.
      on_host: those that are kept in host memory, `_BLOCK_INPUT` perhaps among them.
    """

    everything: bool = False
    on_device: tuple[str, ...] = ()
    on_host: tuple[str, ...] = ()


class BlockExecution(NamedTuple):
    """How blocks are run.

    Attributes:
      gather: turns a block's parameter shards into whole parameters, at use; None where they are
        whole already.
      remat: what each block's backward pass computes again.
      unroll: scans of no more repetitions are unrolled; where `remat` keeps everything only, since
        out of a loop the compiler would undo the rest.
    """

    gather: Gather | None = None
    remat: Remat = Remat(everything=True)
    unroll: int = 1


class HeldRows(NamedTuple):
    """How many rows of a segment hold a layer: `always` on every stage, the first `here` of those
    that are there.

    `here` is None where all rows hold one.
    """

    always: int
    here: jax.Array | None


def build_remat(train: TrainConfig) -> Remat:
    """Read `train.remat` and the activations of `train.offload`."""
    choices = train.remat_choices
    kept = {
        choice: tuple(name for name in choices if choices[name] == choice)
        for choice in ("save", "offload")
    }
    inputs = (_BLOCK_INPUT,) if "activations" in train.offload else ()
    return Remat(train.remat == "none", kept["save"], (*kept["offload"], *inputs))


def build_stack(model: ModelConfig, layout: Layout) -> Stack:
    """Declare all blocks, each of a pattern stacked over its rows."""
    segments, first_layer = [], 0
    for segment, repeat, rows in zip(model.segments, model.repeats, layout.segments, strict=True):
        blocks, length = [], len(segment.blocks)
        for place, block in enumerate(segment.blocks):
            first = first_layer + place
            layers = [
                EMPTY if index == EMPTY else first + index * length for index in rows.repetitions
            ]
            blocks.append(stack_layers(Block(model, block), layers))
        segments.append(nnx.List(blocks))
        first_layer += repeat * length
    return nnx.List(segments)


def run_stack(
    stack: Stack,
    streams: Streams,
    info: SequenceInfo,
    execution: BlockExecution,
    held: Sequence[HeldRows] | None = None,
    carried: Carried | None = None,
) -> tuple[Streams, StackReports, Carried]:
    """Run all blocks that are there.

    Args:
      stack: this device's part of the stacked blocks, or the rows of a chunk of a pipeline's stage.
      streams: what the first of them takes.
      info: where the tokens stand.
      execution: how blocks are run.
      held: which rows of each segment hold a layer; all by default.
      carried: what mixers carried over from the last step, if any do.

    Returns:
      what the last of them hands on, what their layers report, and what mixers carry to the next
      step.
    """
    reports, new = [], []
    for number, segment in enumerate(stack):
        rows = segment, carried[number] if carried else [() for _ in segment]
        streams, (of_segment, to_next) = _run_segment(
            rows, streams, info, execution, held[number] if held else None
        )
        reports.append(of_segment)
        new.append(to_next)
    return streams, reports, new


def _run_segment(
    rows: tuple[Segment, list[Any]],
    streams: Streams,
    info: SequenceInfo,
    execution: BlockExecution,
    held: HeldRows | None,
) -> tuple[Streams, tuple[list[Reports], list[Any]]]:
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    run = run_block(execution, info, prevent_cse=num_rows == 1)

    def repetition(streams: Streams, row: tuple[Segment, list[Any]]) -> tuple[Streams, Any]:
        reports, new = [], []
        for block, carried in zip(*row, strict=True):
            streams, report, to_next = run(block, streams, carried)
            reports.append(report)
            new.append(to_next)
        return streams, (reports, new)

    result: tuple[Streams, Any]
    if held is None or held.here is None:
        unroll = execution.remat.everything and num_rows <= execution.unroll
        result = lax.scan(repetition, streams, rows, unroll=num_rows if unroll else 1)
        return result
    return _run_partly_held(repetition, streams, rows, held, permutes=info.permutes)


def _run_partly_held(
    repetition: Callable[..., Any], streams: Streams, rows: Any, held: HeldRows, *, permutes: bool
) -> tuple[Streams, Any]:
    """Run rows of which some hold no layer on this stage; see `on_some_stages`."""
    always, here = held
    assert here is not None, "some rows hold no layer"
    num_rows = jax.tree.leaves(rows)[0].shape[0]

    def maybe(streams: Streams, numbered: tuple[jax.Array, Any]) -> tuple[Streams, Any]:
        index, row = numbered
        axes = varying_axes(*jax.tree.leaves((streams, row)))
        shapes = jax.eval_shape(repetition, streams, row)[1]

        def skip(streams: Streams, _: Any) -> tuple[Streams, Any]:
            nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            return jax.tree.map(lambda y: vary_over(y, axes), (streams, nothing))  # type: ignore[no-any-return]

        def run(streams: Streams, row: Any) -> tuple[Streams, Any]:
            return jax.tree.map(lambda y: vary_over(y, axes), repetition(streams, row))  # type: ignore[no-any-return]

        return on_some_stages(index < here, run, skip, streams, row, permutes=permutes)

    results = []
    if always:
        streams, first = lax.scan(repetition, streams, jax.tree.map(lambda x: x[:always], rows))
        results.append(first)
    rest = jax.tree.map(lambda x: x[always:], rows)
    streams, last = lax.scan(maybe, streams, (jnp.arange(always, num_rows), rest))
    return streams, jax.tree.map(lambda *parts: jnp.concatenate(parts), *results, last)


def decode_stack(
    stack: Stack, streams: Streams, info: SequenceInfo, states: Any, start_B: jax.Array
) -> tuple[Streams, Any]:
    """Run all blocks on the newest tokens; the states of a block's mixer have its rows in front,
    where the block has rows.
    """

    def repetition(streams: Streams, row: tuple[Segment, Any]) -> tuple[Streams, Any]:
        new_states = []
        for block, state in zip(*row, strict=True):
            streams, new_state = block.decode(streams, info, state, start_B)
            new_states.append(new_state)
        return streams, new_states

    new = []
    for segment, of_segment in zip(stack, states, strict=True):
        rows = segment, of_segment
        streams, of_segment = (
            repetition(streams, rows)
            if row_count(segment) is None
            else lax.scan(repetition, streams, rows)
        )
        new.append(of_segment)
    return streams, new


def row_count(segment: Segment) -> int | None:
    """Return how many rows the blocks of a segment have; None where they hold one layer each."""
    layers = layers_of(named_parameters(segment)[0][1])
    return None if layers is None else len(layers)


def run_block(
    execution: BlockExecution, info: SequenceInfo, *, prevent_cse: bool
) -> Callable[..., tuple[Streams, Reports, Any]]:
    """Return run(block, streams, carried); see `recomputed`."""

    def call(block: Block, streams: Streams, carried: Any) -> tuple[Streams, Reports, Any]:
        return block(streams, info, carried)

    return recomputed(execution, call, prevent_cse=prevent_cse)


def recomputed(
    execution: BlockExecution, function: Callable[..., Any], *, prevent_cse: bool
) -> Callable[..., Any]:
    """Return function(module, x, ...) that takes the shards of a module, and whose backward pass
    recomputes what `remat` does not keep; x, a tree, is what it always keeps or moves to the host.

    Whole parameters are never kept where they are gathered layer by layer: they would be all
    parameters, unsharded. In a loop the compiler cannot merge the recomputation with the forward
    pass; a loop of one turn is none, and there it would, unless `prevent_cse` keeps it from that.
    """
    gather, remat = execution.gather, execution.remat

    def run(shard: Any, x: Any, *more: Any) -> Any:
        x = jax.tree.map(lambda x: checkpoint_name(x, _BLOCK_INPUT), x)
        return function(gather(shard) if gather else shard, x, *more)

    if remat.everything and gather is None:
        return run

    def keep_all_but_gathers(primitive, *arguments, **parameters):  # type: ignore[no-untyped-def]
        return not is_parameter_gather(primitive, *arguments, **parameters)

    named = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=remat.on_device,
        names_which_can_be_offloaded=remat.on_host,
        offload_src="device",
        offload_dst=HOST_MEMORY,
    )
    policy = keep_all_but_gathers if remat.everything else named
    return jax.checkpoint(run, policy=policy, prevent_cse=prevent_cse)
