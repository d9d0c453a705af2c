"""The per-device program of a training step: loss and gradients, every collective in sight."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from maxlm.data.token_hash import batch_hash
from maxlm.jax_versions import vary_over, varying_axes
from maxlm.layers.stack import Carried, StackReports
from maxlm.models.decoder import Decoder
from maxlm.sharding.context import places, zigzag
from maxlm.sharding.fsdp import cast, gather, tied_to_loop, vary, zeros_like_fp32
from maxlm.sharding.mesh import BATCH_AXES, BATCH_SPEC, REPORT_AXES, TOKEN_AXES
from maxlm.sharding.parameters import partition_specs
from maxlm.sharding.tensor import enter
from maxlm.train.loss.carried import join_carried, split_carried
from maxlm.train.loss.execution import Execution
from maxlm.train.loss.further import further_loss, next_tokens
from maxlm.train.loss.pipelined import pipelined_decoder_gradients, pipelined_decoder_losses

Batch = dict[str, jax.Array]
MetricSums = dict[str, jax.Array]


class Sums(NamedTuple):
    """Sums over the whole batch, the same on every device.

    Attributes:
      objective: what is differentiated: the objective's sum over its weight, and the layers'
        penalties.
      weight: what the batch counts, such as its target tokens.
      metrics: other sums of the objective.
      token_hash: uint32[2] of the tokens, independent of how they were split.
      reports: what the layers of the stack report; empty after a mere forward pass.
      carried: what mixers carry to the next step, each device's own sequences; empty likewise.
    """

    objective: jax.Array
    weight: jax.Array
    metrics: MetricSums
    token_hash: jax.Array
    reports: StackReports
    carried: Carried


def make_gradients(
    declared: Decoder, mesh: Mesh, execution: Execution, carried: Carried | None = None
) -> Callable[..., tuple[Decoder, Sums]]:
    """Return gradients(decoder, batch, carried) -> (fp32 gradients laid out as the parameters,
    sums).

    Args:
      declared: the decoder without values.
      mesh: its devices.
      execution: how the loss is computed.
      carried: the declared state of mixers that carry some over from step to step; the result is
        called without it where none do.
    """
    specs = partition_specs(declared)
    compute = (
        pipelined_decoder_gradients if execution.schedule.stages > 1 else _accumulated_gradients
    )
    held_between = declared.carried_state(0) if carried is None else carried
    of_carried = partition_specs(held_between)
    sums_specs = Sums(P(), P(), P(), P(), reports=P("stage"), carried=of_carried)  # type: ignore[arg-type]

    def program(decoder: Decoder, batch: Batch, carried: Carried) -> tuple[Decoder, Sums]:
        weight, scale = _weight(batch, execution)
        kept = _whole_for_step(decoder, execution, execution.compute_dtype)
        pieces, of_pieces = (
            microbatches(batch, execution),
            split_carried(carried, execution.schedule.microbatches),
        )
        gradients, objective, metrics, (reports, new) = compute(
            kept, pieces, of_pieces, scale, execution
        )
        # Back to the parameters' layout along the transpose of `_whole_for_step`, in fp32
        # throughout.
        _, transpose = jax.vjp(
            lambda decoder: _whole_for_step(decoder, execution, jnp.float32), decoder
        )
        reports = jax.tree.map(lambda x: lax.psum(x, REPORT_AXES), reports)
        sums = _sums(batch, objective, weight, metrics)
        return transpose(gradients)[0], sums._replace(
            reports=reports, carried=join_carried(new, carried)
        )

    mapped = jax.shard_map(
        program, mesh=mesh, in_specs=(specs, BATCH_SPEC, of_carried), out_specs=(specs, sums_specs)
    )
    return functools.partial(_with_nothing_carried, mapped, held_between)


def _with_nothing_carried(
    mapped: Callable[..., tuple[Decoder, Sums]],
    declared: Carried,
    decoder: Decoder,
    batch: Batch,
    carried: Carried | None = None,
) -> tuple[Decoder, Sums]:
    return mapped(decoder, batch, declared if carried is None else carried)


def make_losses(
    declared: Decoder, mesh: Mesh, execution: Execution
) -> Callable[[Decoder, Batch], Sums]:
    """Return losses(decoder, batch) -> sums: the forward pass alone."""

    def program(decoder: Decoder, batch: Batch) -> Sums:
        weight, scale = _weight(batch, execution)
        kept = _whole_for_step(decoder.without_modules(), execution, execution.compute_dtype)
        pieces = microbatches(batch, execution)
        if execution.schedule.stages > 1:
            objective, metrics = pipelined_decoder_losses(kept, pieces, scale, execution)
            return _sums(batch, objective, weight, metrics)

        def microbatch(_: None, piece: Batch) -> tuple[None, tuple[jax.Array, MetricSums]]:
            objective, (metrics, _told) = _loss(
                _tied(kept, piece, execution), piece, None, scale, execution
            )
            return None, (objective, metrics)

        _, (objectives, metrics) = lax.scan(microbatch, None, pieces)
        return _sums(batch, objectives.sum(), weight, _summed(metrics))

    return jax.shard_map(
        program, mesh=mesh, in_specs=(partition_specs(declared), BATCH_SPEC), out_specs=P()
    )


def _loss(
    kept: Decoder, piece: Batch, carried: Carried | None, scale: jax.Array, execution: Execution
) -> tuple[jax.Array, tuple[MetricSums, tuple[StackReports, Carried]]]:
    """From the tokens of a microbatch to this device's part of the objective, its sum times
    `scale`.

    Returns:
      its share of the step's objective; the objective's other sums, what layers report, and what
      mixers carry on.
    """
    decoder = _whole_for_microbatch(kept, execution)
    info = execution.sequence_info(piece)
    hidden_BTD, reports, to_next = decoder(piece["tokens"], info, execution.blocks, carried)
    with jax.named_scope("loss"):
        hidden_TD = enter(hidden_BTD).reshape(-1, hidden_BTD.shape[-1])
        fields = {name: field.reshape(-1) for name, field in piece.items()}
        objective, metrics = execution.objective.loss(hidden_TD, decoder.output_DV(), fields)
    if decoder.mtp:
        with jax.named_scope("mtp"):
            tokens_DBT = next_tokens(decoder, piece)
            of_depths, behind = decoder.further(hidden_BTD, tokens_DBT, info, execution.blocks)
        with jax.named_scope("loss"):
            hidden = [enter(of_depth).reshape(hidden_TD.shape) for of_depth in of_depths]
            further, more = further_loss(decoder, hidden, fields, execution)
        objective, metrics, reports = objective + further, {**metrics, **more}, reports + behind
    with jax.named_scope("loss"):
        penalty = decoder.penalty(reports) / execution.schedule.microbatches
        return objective * scale + penalty, (metrics, (reports, to_next))


def _accumulated_gradients(
    kept: Decoder, pieces: Batch, carried: Carried, scale: jax.Array, execution: Execution
) -> tuple[Decoder, jax.Array, MetricSums, tuple[StackReports, Carried]]:
    """Work microbatches off one after the other.

    Args:
      kept: parameters, whole as far as they are whole for the step.
      pieces: fields of all microbatches, which are the leading dimension.
      carried: what mixers carried over, likewise.
      scale: what the objective's sum is multiplied with.
      execution: how the loss is computed.

    Returns:
      fp32 gradients like `kept`, and this device's objective, other sums, reports and what is
      carried on.
    """

    def microbatch(
        gradients: Decoder, one: tuple[Batch, Carried]
    ) -> tuple[Decoder, tuple[jax.Array, Any]]:
        piece, own = one
        tied = _tied(kept, piece, execution)
        losses, piece_gradients = jax.value_and_grad(_loss, has_aux=True)(
            tied, piece, own, scale, execution
        )
        return jax.tree.map(jnp.add, gradients, piece_gradients), losses

    gradients, (objectives, (metrics, (reports, to_next))) = lax.scan(
        microbatch, zeros_like_fp32(kept), (pieces, carried)
    )
    return gradients, objectives.sum(), _summed(metrics), (_summed(reports), to_next)


def _whole_for_step(decoder: Decoder, execution: Execution, dtype: Any) -> Decoder:
    """Make parameters whole once a step: all of them (ZeRO-1), or with a pipeline those outside the
    stack.
    """
    decoder = vary(decoder)
    if execution.gather == "step":
        return gather(cast(decoder, dtype))
    return decoder.whole_outside_stack(dtype) if execution.schedule.stages > 1 else decoder


def _whole_for_microbatch(kept: Decoder, execution: Execution) -> Decoder:
    """Make parameters whole once a microbatch: all of them (ZeRO-2), or those outside the stack
    (ZeRO-3).
    """
    if execution.gather == "step":
        return kept
    if execution.gather == "microbatch":
        whole: Decoder = execution.whole(kept)
        return whole
    return kept.whole_outside_stack(execution.compute_dtype)


def _tied(kept: Decoder, piece: Batch, execution: Execution) -> Decoder:
    """Tie parameters to a turn of the loop over microbatches.

    The compiler would otherwise gather them once, before the loop, and hold them whole until it
    ends.
    """
    return kept if execution.gather == "step" else tied_to_loop(kept, piece["tokens"])


def microbatches(batch: Batch, execution: Execution) -> Batch:
    """Split this device's sequences into microbatches, tokens as `context` wants them: (B, T) ->
    (M, B / M, T).

    Every M-th sequence, so that the microbatches of all devices together are the same ones on every
    mesh. Beside the fields of the batch there are the tokens' `places` in their rows.
    """
    tokens = batch["tokens"]
    shape = (-1, execution.schedule.microbatches, tokens.shape[1])
    pieces = {name: zigzag(array).reshape(shape).swapaxes(0, 1) for name, array in batch.items()}
    in_rows = places(tokens).reshape(shape).swapaxes(0, 1)
    return {**pieces, "places": vary_over(in_rows, varying_axes(tokens))}


def _weight(batch: Batch, execution: Execution) -> tuple[jax.Array, jax.Array]:
    """Return what the whole batch counts, and what the objective's sum is multiplied with."""
    weight = lax.psum(execution.objective.weight(batch), TOKEN_AXES)
    return weight, 1.0 / jnp.maximum(weight, 1.0)


def _summed(metrics: Any) -> Any:
    return jax.tree.map(lambda values: values.sum(axis=0), metrics)


def _sums(batch: Batch, objective: jax.Array, weight: jax.Array, metrics: MetricSums) -> Sums:
    """Add up what the devices saw."""
    tokens = batch["tokens"]
    num_rows, num_columns = tokens.shape
    rows = lax.axis_index(BATCH_AXES) * num_rows + jnp.arange(num_rows)
    columns = lax.axis_index("context") * num_columns + jnp.arange(num_columns)
    partial_hash = batch_hash(tokens, batch["segment_ids"], rows=rows, columns=columns)
    axes = ("stage", *TOKEN_AXES)
    return Sums(
        objective=lax.psum(objective, axes),
        weight=weight,
        metrics={name: lax.psum(vary_over(value, axes), axes) for name, value in metrics.items()},
        token_hash=lax.psum(partial_hash, TOKEN_AXES),
        reports=[],
        carried=[],
    )
