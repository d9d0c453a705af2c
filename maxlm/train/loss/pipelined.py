"""The decoder as a pipeline sees it: what each stage does in a tick (`maxlm.sharding.pipeline`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from maxlm.layers.stack import Stack, StackReports
from maxlm.models.decoder import Decoder
from maxlm.sharding.fsdp import zeros_like_fp32
from maxlm.sharding.pipeline import Parts, pipelined_gradients, pipelined_losses, spread_over_stages
from maxlm.sharding.tensor import enter
from maxlm.train.loss.execution import Execution

Fields = dict[str, jax.Array]
MetricSums = dict[str, jax.Array]


def pipelined_decoder_gradients(
    kept: Decoder, pieces: Fields, scale: jax.Array, execution: Execution
) -> tuple[Decoder, jax.Array, MetricSums, StackReports]:
    """Run microbatches through the pipeline, forward and backward.

    Args:
      kept: whole outside the stack, in it this stage's rows.
      pieces: fields of all microbatches, (M, B / M, T) each.
      scale: what the objective's sum is multiplied with.
      execution: how the loss is computed.

    Returns:
      fp32 gradients like `kept`, and this device's objective, other sums and reports.
    """
    outer, stack = kept.with_stack(nnx.List([])), kept.stack
    d_outer, d_stack, objective, metrics, reports = pipelined_gradients(
        _parts(pieces, scale, execution),
        outer,
        stack,
        (zeros_like_fp32(outer), zeros_like_fp32(stack)),
        _activations(kept, pieces, execution),
        execution.schedule,
    )
    return d_outer.with_stack(d_stack), objective, metrics, reports


def pipelined_decoder_losses(
    kept: Decoder, pieces: Fields, scale: jax.Array, execution: Execution
) -> tuple[jax.Array, MetricSums]:
    """Run microbatches through the pipeline, forward only; return this device's objective and other sums."""
    outer, stack = kept.with_stack(nnx.List([])), kept.stack
    activations = _activations(kept, pieces, execution)
    return pipelined_losses(_parts(pieces, scale, execution), outer, stack, activations, execution.schedule)


def _parts(pieces: Fields, scale: jax.Array, execution: Execution) -> Parts:
    def run_chunk(
        outer: Decoder, chunk: Stack, x_BTD: jax.Array, place: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, StackReports]:
        microbatch, number, first = place
        fields = {name: lax.dynamic_index_in_dim(array, microbatch, keepdims=False) for name, array in pieces.items()}
        decoder = outer.with_stack(execution.whole(chunk) if execution.gather == "microbatch" else chunk)
        info = decoder.prepared(execution.sequence_info(fields))
        # Every stage looks tokens up and all but the first drop them: a lookup costs no multiplication.
        x_BTD = jnp.where(first, decoder.embed(fields["tokens"], info), x_BTD)
        held = execution.held_rows(lax.axis_index("stage"), number)
        y_BTD, reports = decoder.run_blocks(x_BTD, info, execution.blocks, held)
        return y_BTD, jnp.asarray(decoder.penalty(reports) / execution.schedule.microbatches), reports

    def losses(outer: Decoder, y_BTD: jax.Array, microbatch: jax.Array) -> tuple[jax.Array, MetricSums]:
        with jax.named_scope("loss"):
            own_TD = spread_over_stages(y_BTD.reshape(-1, y_BTD.shape[-1]))
            hidden_TD = enter(outer.norm(own_TD)[None])[0]
            fields = {name: _stage_share(array[microbatch]) for name, array in pieces.items()}
            objective, metrics = execution.objective.loss(hidden_TD, outer.output_DV(), fields)
            return objective * scale, metrics

    return Parts(run_chunk, losses)


def _stage_share(x_BT: jax.Array) -> jax.Array:
    """Pick the tokens whose loss this stage computes, in the order in which `losses` has their hidden states."""
    parts, stages = lax.axis_size("tensor"), lax.axis_size("stage")
    by_part = x_BT.reshape(x_BT.shape[0], parts, -1).swapaxes(0, 1).reshape(parts, stages, -1)
    return lax.dynamic_index_in_dim(by_part, lax.axis_index("stage"), axis=1, keepdims=False).reshape(-1)


def _activations(kept: Decoder, pieces: Fields, execution: Execution) -> jax.ShapeDtypeStruct:
    """Return shape and dtype of what a stage sends to the next."""
    _, batch_size, length = pieces["tokens"].shape
    shape = (batch_size, length // lax.axis_size("tensor"), kept.model.embed_dim)
    return jax.ShapeDtypeStruct(shape, execution.compute_dtype)
