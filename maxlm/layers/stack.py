"""The layer stack: segments one after the other, each a scan over repetitions of its pattern of blocks.

FSDP lives here, and nowhere else in the model. A stack is a list of segments, a segment a list of the blocks of its
pattern, and each block has a row of parameters for every repetition (`maxlm.sharding.stages`).
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
from maxlm.layers.sequence import SequenceInfo
from maxlm.sharding.fsdp import is_parameter_gather
from maxlm.sharding.host import HOST_MEMORY
from maxlm.sharding.parameters import stack_layers
from maxlm.sharding.stages import EMPTY, Layout

Gather = Callable[[Block], Block]
Segment = nnx.List  # of blocks
Stack = nnx.List  # of segments
StackReports = list[list[Reports]]
"""What blocks report, by segment and place in its pattern, with a row for every repetition."""

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
      gather: turns a block's parameter shards into whole parameters, at use; None where they are whole already.
      remat: what each block's backward pass computes again.
    """

    gather: Gather | None = None
    remat: Remat = Remat(everything=True)


class HeldRows(NamedTuple):
    """How many rows of a segment hold a layer: `always` on every stage, the first `here` of those that are there.

    `here` is None where all rows hold one.
    """

    always: int
    here: jax.Array | None


def build_remat(train: TrainConfig) -> Remat:
    """Read `train.remat` and the activations of `train.offload`."""
    choices = train.remat_choices
    kept = {choice: tuple(name for name in choices if choices[name] == choice) for choice in ("save", "offload")}
    inputs = (_BLOCK_INPUT,) if "activations" in train.offload else ()
    return Remat(train.remat == "none", kept["save"], (*kept["offload"], *inputs))


def build_stack(model: ModelConfig, layout: Layout) -> Stack:
    """Declare all blocks, each of a pattern stacked over its rows."""
    segments, first_layer = [], 0
    for segment, repeat, rows in zip(model.segments, model.repeats, layout.segments, strict=True):
        blocks, length = [], len(segment.blocks)
        for place, block in enumerate(segment.blocks):
            first = first_layer + place
            layers = [EMPTY if index == EMPTY else first + index * length for index in rows.repetitions]
            blocks.append(stack_layers(Block(model, block), layers))
        segments.append(nnx.List(blocks))
        first_layer += repeat * length
    return nnx.List(segments)


def run_stack(
    stack: Stack,
    x_BTD: jax.Array,
    info: SequenceInfo,
    execution: BlockExecution,
    held: Sequence[HeldRows] | None = None,
) -> tuple[jax.Array, StackReports]:
    """Run all blocks that are there; (B, T / tensor, D) -> (B, T / tensor, D), and what their layers report.

    Args:
      stack: this device's part of the stacked blocks, or the rows of a chunk of a pipeline's stage.
      x_BTD: what the first of them takes.
      info: where the tokens stand.
      execution: how blocks are run.
      held: which rows of each segment hold a layer; all by default.
    """
    reports = []
    for number, segment in enumerate(stack):
        x_BTD, of_segment = _run_segment(segment, x_BTD, info, execution, held[number] if held else None)
        reports.append(of_segment)
    return x_BTD, reports


def _run_segment(
    segment: Segment, x_BTD: jax.Array, info: SequenceInfo, execution: BlockExecution, held: HeldRows | None
) -> tuple[jax.Array, list[Reports]]:
    num_rows = jax.tree.leaves(segment)[0].shape[0]
    run = run_block(execution, info, prevent_cse=num_rows == 1)

    def repetition(x_BTD: jax.Array, blocks: Segment) -> tuple[jax.Array, list[Reports]]:
        reports = []
        for block in blocks:
            x_BTD, report = run(block, x_BTD)
            reports.append(report)
        return x_BTD, reports

    result: tuple[jax.Array, list[Reports]]
    if held is None or held.here is None:
        result = lax.scan(repetition, x_BTD, segment)
        return result
    return _run_partly_held(repetition, x_BTD, segment, held.always, held.here)


def _run_partly_held(
    repetition: Callable[..., Any], x_BTD: jax.Array, segment: Segment, always: int, here: jax.Array
) -> tuple[jax.Array, list[Reports]]:
    """Run rows of which the first `here` hold a layer on this stage, and the first `always` on every stage.

    A branch for the others, so that nobody computes a layer that is not there. It may hold collectives: those of blocks
    are within a stage, all of whose devices take the same branch.
    """
    num_rows = jax.tree.leaves(segment)[0].shape[0]

    def maybe(x_BTD: jax.Array, row: tuple[jax.Array, Segment]) -> tuple[jax.Array, list[Reports]]:
        index, blocks = row
        shapes = jax.eval_shape(repetition, x_BTD, blocks)

        def skip(x_BTD: jax.Array, blocks: Segment) -> tuple[jax.Array, list[Reports]]:
            axes = varying_axes(x_BTD, *jax.tree.leaves(blocks))
            nothing = jax.tree.map(lambda s: vary_over(jnp.zeros(s.shape, s.dtype), axes), shapes[1])
            return vary_over(x_BTD, axes), nothing

        def held(x_BTD: jax.Array, blocks: Segment) -> tuple[jax.Array, list[Reports]]:
            axes = varying_axes(x_BTD, *jax.tree.leaves(blocks))
            result: tuple[jax.Array, list[Reports]]
            result = jax.tree.map(lambda y: vary_over(y, axes), repetition(x_BTD, blocks))
            return result

        return lax.cond(index < here, held, skip, x_BTD, blocks)  # type: ignore[no-any-return]

    reports = []
    if always:
        x_BTD, first = lax.scan(repetition, x_BTD, jax.tree.map(lambda rows: rows[:always], segment))
        reports.append(first)
    rest = jax.tree.map(lambda rows: rows[always:], segment)
    x_BTD, last = lax.scan(maybe, x_BTD, (jnp.arange(always, num_rows), rest))
    return x_BTD, jax.tree.map(lambda *parts: jnp.concatenate(parts), *reports, last)


def decode_stack(
    stack: Stack, x_BTD: jax.Array, info: SequenceInfo, states: Any, start_B: jax.Array
) -> tuple[jax.Array, Any]:
    """Run all blocks on the newest tokens; the states of a block's mixer have its rows in front."""

    def repetition(x_BTD: jax.Array, row: tuple[Segment, Any]) -> tuple[jax.Array, Any]:
        new_states = []
        for block, state in zip(*row, strict=True):
            x_BTD, new_state = block.decode(x_BTD, info, state, start_B)
            new_states.append(new_state)
        return x_BTD, new_states

    new = []
    for segment, of_segment in zip(stack, states, strict=True):
        x_BTD, of_segment = lax.scan(repetition, x_BTD, (segment, of_segment))
        new.append(of_segment)
    return x_BTD, new


def run_block(
    execution: BlockExecution, info: SequenceInfo, *, prevent_cse: bool
) -> Callable[..., tuple[jax.Array, Reports]]:
    """Return run(block, x) whose backward pass recomputes what `remat` does not keep.

    Whole parameters are never kept where they are gathered layer by layer: they would be all parameters, unsharded.
    In a loop the compiler cannot merge the recomputation with the forward pass; a loop of one turn is none, and there
    it would, unless `prevent_cse` keeps it from that.
    """
    gather, remat = execution

    def run(shard: Block, x_BTD: jax.Array) -> tuple[jax.Array, Reports]:
        x_BTD = checkpoint_name(x_BTD, _BLOCK_INPUT)
        result: tuple[jax.Array, Reports] = (gather(shard) if gather else shard)(x_BTD, info)
        return result

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
    return jax.checkpoint(run, policy=policy, prevent_cse=prevent_cse)  # type: ignore[no-any-return]
