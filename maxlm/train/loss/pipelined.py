"""The decoder as a pipeline sees it: what each stage does in a tick (`maxlm.sharding.pipeline`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from maxlm.jax_versions import vary_over, varying_axes
from maxlm.layers.layer import Streams
from maxlm.layers.stack import Carried, Stack, StackReports
from maxlm.models.decoder import Decoder
from maxlm.sharding.fsdp import zeros_like_fp32
from maxlm.sharding.pipeline import Parts, pipelined_gradients, pipelined_losses, spread_over_stages
from maxlm.sharding.tensor import enter
from maxlm.train.loss.execution import Execution
from maxlm.train.loss.further import further_loss, further_on_last_stage

Fields = dict[str, jax.Array]
MetricSums = dict[str, jax.Array]


def pipelined_decoder_gradients(
    kept: Decoder, pieces: Fields, carried: Carried, scale: jax.Array, execution: Execution
) -> tuple[Decoder, jax.Array, MetricSums, tuple[StackReports, Carried]]:
    """Run microbatches through the pipeline, forward and backward.

    Args:
      kept: whole outside the stack, in it this stage's rows.
      pieces: fields of all microbatches, (M, B / M, T) each.
      carried: what mixers carried over, microbatches first, then this stage's rows.
      scale: what the objective's sum is multiplied with.
      execution: how the loss is computed.

    Returns:
      fp32 gradients like `kept`, and this device's objective, other sums, reports and what is
      carried on.
    """
    outer, stack = kept.with_stack(nnx.List([])), kept.stack
    d_outer, d_stack, objective, (metrics, behind), (reports, to_next) = pipelined_gradients(
        _parts(pieces, carried, scale, execution),
        outer,
        stack,
        (zeros_like_fp32(outer), zeros_like_fp32(stack)),
        _activations(kept, pieces, execution),
        execution.schedule,
    )
    # Rows come first in what stages report, microbatches in what is carried.
    to_next = jax.tree.map(lambda rows: rows.swapaxes(0, 1), to_next)
    return d_outer.with_stack(d_stack), objective, metrics, (reports + behind, to_next)


def pipelined_decoder_losses(
    kept: Decoder, pieces: Fields, scale: jax.Array, execution: Execution
) -> tuple[jax.Array, MetricSums]:
    """Run microbatches through the pipeline, forward only; return this device's objective and other
    sums.
    """
    outer, stack = kept.with_stack(nnx.List([])), kept.stack
    activations = _activations(kept, pieces, execution)
    objective, (metrics, _) = pipelined_losses(
        _parts(pieces, None, scale, execution), outer, stack, activations, execution.schedule
    )
    return objective, metrics


def _parts(
    pieces: Fields, carried: Carried | None, scale: jax.Array, execution: Execution
) -> Parts:
    def run_chunk(
        outer: Decoder,
        chunk: Stack,
        streams: Streams,
        place: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[Streams, jax.Array, tuple[StackReports, Carried]]:
        microbatch, number, first = place
        fields = {
            name: lax.dynamic_index_in_dim(array, microbatch, keepdims=False)
            for name, array in pieces.items()
        }
        decoder = outer.without_modules().with_stack(
            execution.whole(chunk) if execution.gather == "microbatch" else chunk
        )
        info = decoder.prepared(execution.sequence_info(fields))
        # Every stage looks tokens up and all but the first drop them: a lookup costs no
        # multiplication.
        embedded = decoder.embed(fields["tokens"], info)
        streams = jax.tree.map(lambda new, x: jnp.where(first, new, x), embedded, streams)
        held = execution.held_rows(lax.axis_index("stage"), number)
        own = _of_chunk(carried, microbatch, number, execution.schedule.repeats)
        streams, reports, to_next = decoder.run_blocks(
            streams, info, execution.blocks, held=held, carried=own
        )
        penalty = jnp.asarray(decoder.penalty(reports) / execution.schedule.microbatches)
        return (
            streams,
            penalty,
            (reports, _among_microbatches(to_next, microbatch, execution.schedule.microbatches)),
        )

    def losses(
        outer: Decoder, streams: Streams, microbatch: jax.Array
    ) -> tuple[jax.Array, tuple[MetricSums, StackReports]]:
        y_BTD = streams.x_BTD
        whole = {name: array[microbatch] for name, array in pieces.items()}
        with jax.named_scope("loss"):
            hidden_TD = enter(outer.norm(_stage_rows(y_BTD))[None])[0]
            fields = {name: _stage_share(array) for name, array in whole.items()}
            objective, metrics = execution.objective.loss(hidden_TD, outer.output_DV(), fields)
        if not outer.mtp:
            return objective * scale, (metrics, [])
        of_depths, reports = further_on_last_stage(outer, y_BTD, whole, execution)
        with jax.named_scope("loss"):
            hidden = [enter(_stage_rows(of_depth)[None])[0] for of_depth in of_depths]
            further, more = further_loss(outer, hidden, fields, execution)
            penalty = outer.penalty(reports) / execution.schedule.microbatches
            return (objective + further) * scale + penalty, ({**metrics, **more}, reports)

    return Parts(run_chunk, losses)


def _of_chunk(
    carried: Carried | None, microbatch: jax.Array, number: jax.Array, repeats: int
) -> Carried | None:
    """Cut out what a chunk's mixers carried over for a microbatch; the whole stage's in an abstract
    evaluation.
    """

    def cut(pieces: jax.Array) -> jax.Array:
        rows = lax.dynamic_index_in_dim(pieces, microbatch, keepdims=False)
        size = rows.shape[0] // repeats
        return lax.dynamic_slice_in_dim(rows, number * size, size)

    return jax.tree.map(cut, carried)  # type: ignore[no-any-return]


def _among_microbatches(to_next: Carried, microbatch: jax.Array, count: int) -> Carried:
    """Put a microbatch's rows among zeros for the others: what stages report is summed over
    microbatches.
    """

    def put(rows: jax.Array) -> jax.Array:
        zeros = vary_over(
            jnp.zeros((rows.shape[0], count, *rows.shape[1:]), rows.dtype), varying_axes(rows)
        )
        return lax.dynamic_update_index_in_dim(zeros, rows, microbatch, axis=1)

    return jax.tree.map(put, to_next)  # type: ignore[no-any-return]


def _stage_rows(y_BTD: jax.Array) -> jax.Array:
    """Return this stage's share of the tokens that the last one has, (T / (tensor S), D)."""
    return spread_over_stages(y_BTD.reshape(-1, y_BTD.shape[-1]))


def _stage_share(x_BT: jax.Array) -> jax.Array:
    """Pick the tokens whose loss this stage computes, in the order in which `losses` has their
    hidden states.
    """
    parts, stages = lax.axis_size("tensor"), lax.axis_size("stage")
    by_part = x_BT.reshape(x_BT.shape[0], parts, -1).swapaxes(0, 1).reshape(parts, stages, -1)
    return lax.dynamic_index_in_dim(
        by_part, lax.axis_index("stage"), axis=1, keepdims=False
    ).reshape(-1)


def _activations(kept: Decoder, pieces: Fields, execution: Execution) -> Streams:
    """Return shapes and types of what a stage sends to the next."""
    fields = {name: array[0] for name, array in pieces.items()}

    def embed() -> Streams:
        return kept.embed(fields["tokens"], kept.prepared(execution.sequence_info(fields)))

    shapes: Streams = jax.eval_shape(embed)
    return shapes
