"""The per-device program of a training step: loss and gradients, every collective in sight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import MeshConfig, RunConfig
from maxlm.data.token_hash import batch_hash
from maxlm.layers.moe import ROUTER_AXES
from maxlm.layers.sequence import SequenceInfo
from maxlm.layers.stack import Gather, Remat, Stats, build_remat
from maxlm.models.decoder import Decoder
from maxlm.ops.attention import Kernel
from maxlm.ops.cross_entropy import LossOptions, cross_entropy
from maxlm.sharding.context import zigzag
from maxlm.sharding.fsdp import cast, gather, tied_to_loop, vary, zeros_like_fp32
from maxlm.sharding.mesh import BATCH_AXES, BATCH_SPEC, TOKEN_AXES
from maxlm.sharding.parameters import partition_specs
from maxlm.sharding.pipeline import Parts, Schedule, pipelined_gradients, pipelined_losses, spread_over_stages
from maxlm.sharding.tensor import enter

Batch = dict[str, jax.Array]


class Numerics(NamedTuple):
    """What decides how the loss is computed on this platform."""

    gather: str
    remat: Remat
    schedule: Schedule
    compute_dtype: Any
    attention_kernel: Kernel
    context_kind: str
    loss: LossOptions


class Sums(NamedTuple):
    """Sums over the whole batch, the same on every device.

    Attributes:
      objective: what is differentiated, per token that counts: cross entropy, z-loss, smoothing; and balance losses.
      nats: plain cross entropy of all tokens that count.
      weight: number of tokens that count.
      target_bytes: bytes of text these tokens stand for.
      token_hash: uint32[2] of the tokens, independent of how they were split.
      routers: what the routers of each block of the pattern did, layers first; empty after a mere forward pass.
    """

    objective: jax.Array
    nats: jax.Array
    weight: jax.Array
    target_bytes: jax.Array
    token_hash: jax.Array
    routers: Stats


_SUMS_SPECS = Sums(P(), P(), P(), P(), P(), routers=P("stage"))  # type: ignore[arg-type]


def compute_dtype_of(config: RunConfig, platform: str) -> jnp.dtype:
    """Resolve `train.compute_dtype`: auto is bfloat16 on accelerators, float32 on the CPU."""
    chosen = config.train.compute_dtype
    return jnp.dtype({"auto": "float32" if platform == "cpu" else "bfloat16"}.get(chosen, chosen))


def numerics(config: RunConfig, mesh: MeshConfig, attention_kernel: Kernel, compute_dtype: jnp.dtype) -> Numerics:
    """Collect what decides how the loss is computed."""
    train = config.train
    return Numerics(
        gather=train.gather,
        remat=build_remat(train),
        schedule=Schedule(mesh.stage, mesh.stage_repeats, train.microbatches),
        compute_dtype=compute_dtype,
        attention_kernel=attention_kernel,
        context_kind=mesh.context_kind,
        loss=LossOptions(train.z_loss, train.label_smoothing, train.loss_chunk_tokens),
    )


def make_gradients(declared: Decoder, mesh: Mesh, how: Numerics) -> Callable[[Decoder, Batch], tuple[Decoder, Sums]]:
    """Return gradients(decoder, batch) -> (fp32 gradients laid out as the parameters, sums)."""
    specs = partition_specs(declared)
    compute = _pipelined_gradients if how.schedule.stages > 1 else _accumulated_gradients

    def program(decoder: Decoder, batch: Batch) -> tuple[Decoder, Sums]:
        weight = lax.psum(batch["weights"].sum(), TOKEN_AXES)
        share = 1.0 / jnp.maximum(weight, 1.0)
        held = _at_step(decoder, how, how.compute_dtype)
        gradients, objective, nats, routers = compute(held, _pieces(batch, how), share, how)
        # Back to the parameters' layout along the transpose of `_at_step`, in fp32 throughout.
        _, transpose = jax.vjp(lambda decoder: _at_step(decoder, how, jnp.float32), decoder)
        routers = jax.tree.map(lambda x: lax.psum(x, ROUTER_AXES), routers)
        return transpose(gradients)[0], _sums(batch, objective, nats, weight)._replace(routers=routers)

    return jax.shard_map(program, mesh=mesh, in_specs=(specs, BATCH_SPEC), out_specs=(specs, _SUMS_SPECS))


def make_losses(declared: Decoder, mesh: Mesh, how: Numerics) -> Callable[[Decoder, Batch], Sums]:
    """Return losses(decoder, batch) -> sums: the forward pass alone."""

    def program(decoder: Decoder, batch: Batch) -> Sums:
        weight = lax.psum(batch["weights"].sum(), TOKEN_AXES)
        share = 1.0 / jnp.maximum(weight, 1.0)
        held, pieces = _at_step(decoder, how, how.compute_dtype), _pieces(batch, how)
        if how.schedule.stages > 1:
            outer, stack = held.with_stack(nnx.List([])), held.stack
            parts = _pipeline_parts(pieces, share, how)
            objective, nats = pipelined_losses(parts, outer, stack, _activations(held, pieces, how), how.schedule)
        else:

            def microbatch(_: None, piece: Batch) -> tuple[None, tuple[jax.Array, jax.Array]]:
                objective, (nats, _routers) = _token_losses(_in_microbatch(held, piece, how), piece, share, how)
                return None, (objective, nats)

            _, (objectives, nats) = lax.scan(microbatch, None, pieces)
            objective, nats = objectives.sum(), nats.sum()
        return _sums(batch, objective, nats, weight)

    return jax.shard_map(program, mesh=mesh, in_specs=(partition_specs(declared), BATCH_SPEC), out_specs=P())


def _at_step(decoder: Decoder, how: Numerics, dtype: Any) -> Decoder:
    """Make parameters whole once a step: all of them (ZeRO-1), or with a pipeline those outside the stack."""
    decoder = vary(decoder)
    if how.gather == "step":
        return gather(cast(decoder, dtype))
    return decoder.whole_outside_stack(dtype) if how.schedule.stages > 1 else decoder


def _at_microbatch(held: Decoder, how: Numerics) -> Decoder:
    """Make parameters whole once a microbatch: all of them (ZeRO-2), or those outside the stack (ZeRO-3)."""
    if how.gather == "step":
        return held
    if how.gather == "microbatch":
        return gather(cast(held, how.compute_dtype))
    return held.whole_outside_stack(how.compute_dtype)


def _in_microbatch(held: Decoder, piece: Batch, how: Numerics) -> Decoder:
    """Keep what is made whole once a microbatch from being made whole before the loop."""
    return held if how.gather == "step" else tied_to_loop(held, piece["tokens"])


def _accumulated_gradients(
    held: Decoder, pieces: Batch, share: jax.Array, how: Numerics
) -> tuple[Decoder, jax.Array, jax.Array, Stats]:
    """Work microbatches off one after the other.

    Returns:
      fp32 gradients like `held`, and this device's objective, nats and router statistics.
    """

    def microbatch(gradients: Decoder, piece: Batch) -> tuple[Decoder, tuple[jax.Array, tuple[jax.Array, Stats]]]:
        shard = _in_microbatch(held, piece, how)
        losses, piece_gradients = jax.value_and_grad(_token_losses, has_aux=True)(shard, piece, share, how)
        return jax.tree.map(jnp.add, gradients, piece_gradients), losses

    gradients, (objectives, (nats, routers)) = lax.scan(microbatch, zeros_like_fp32(held), pieces)
    return gradients, objectives.sum(), nats.sum(), jax.tree.map(lambda x: x.sum(axis=0), routers)


def _token_losses(
    held: Decoder, batch: Batch, share: jax.Array, how: Numerics
) -> tuple[jax.Array, tuple[jax.Array, Stats]]:
    """Return this device's share of the objective; its nats, and what its routers did."""
    decoder = _at_microbatch(held, how)
    info = decoder.sequence_info(batch["positions"], batch["segment_ids"], how.attention_kernel, how.context_kind)
    by_layer = _gather_at_use(how) if how.gather == "layer" else None
    x_BTD = decoder.run_prefix(decoder.embed(batch["tokens"], info), info, gather=by_layer, remat=how.remat)
    x_BTD, routers = decoder.run_blocks(x_BTD, info, gather=by_layer, remat=how.remat)
    with jax.named_scope("loss"):
        x_TD = enter(decoder.norm(x_BTD)).reshape(-1, x_BTD.shape[-1])
        targets_T, weights_T = batch["targets"].reshape(-1), batch["weights"].reshape(-1)
        objective, nats = cross_entropy(x_TD, decoder.output_DV(), targets_T, weights_T, how.loss)
        balance = decoder.balance_loss(routers) / how.schedule.microbatches
        return objective * share + balance, (nats, routers)


def _gather_at_use(how: Numerics) -> Gather:
    return lambda blocks: gather(cast(blocks, how.compute_dtype))


def _pipelined_gradients(
    held: Decoder, pieces: Batch, share: jax.Array, how: Numerics
) -> tuple[Decoder, jax.Array, jax.Array, Stats]:
    """Run microbatches through the pipeline; the same results as `_accumulated_gradients`."""
    outer, stack = held.with_stack(nnx.List([])), held.stack
    d_outer, d_stack, objective, nats, routers = pipelined_gradients(
        _pipeline_parts(pieces, share, how),
        outer,
        stack,
        (zeros_like_fp32(outer), zeros_like_fp32(stack)),
        _activations(held, pieces, how),
        how.schedule,
    )
    return d_outer.with_stack(d_stack), objective, nats, routers


def _pipeline_parts(pieces: Batch, share: jax.Array, how: Numerics) -> Parts:
    """Cut the model into what each stage does in a tick."""

    def run_chunk(
        outer: Decoder, chunk: Any, x_BTD: jax.Array, microbatch: jax.Array, first: jax.Array
    ) -> tuple[jax.Array, jax.Array, Stats]:
        piece = {name: lax.dynamic_index_in_dim(array, microbatch, keepdims=False) for name, array in pieces.items()}
        info = outer.sequence_info(piece["positions"], piece["segment_ids"], how.attention_kernel, how.context_kind)
        # Every stage looks tokens up and all but the first drop them: a lookup costs no multiplication.
        x_BTD = jnp.where(first, outer.embed(piece["tokens"], info), x_BTD)
        x_BTD = _prefix_of_first(outer, x_BTD, info, first, how)
        chunk = gather(cast(chunk, how.compute_dtype)) if how.gather == "microbatch" else chunk
        by_layer = _gather_at_use(how) if how.gather == "layer" else None
        y_BTD, routers = outer.with_stack(chunk).run_blocks(x_BTD, info, gather=by_layer, remat=how.remat)
        return y_BTD, jnp.asarray(outer.balance_loss(routers) / how.schedule.microbatches), routers

    def losses(outer: Decoder, y_BTD: jax.Array, microbatch: jax.Array) -> tuple[jax.Array, jax.Array]:
        with jax.named_scope("loss"):
            own_TD = spread_over_stages(y_BTD.reshape(-1, y_BTD.shape[-1]))
            x_TD = enter(outer.norm(own_TD)[None])[0]
            targets_T, weights_T = (_stage_share(pieces[name][microbatch]) for name in ("targets", "weights"))
            objective, nats = cross_entropy(x_TD, outer.output_DV(), targets_T, weights_T, how.loss)
            return objective * share, nats

    return Parts(run_chunk, losses)


def _prefix_of_first(
    outer: Decoder, x_BTD: jax.Array, info: SequenceInfo, first: jax.Array, how: Numerics
) -> jax.Array:
    """Run the blocks before the pattern on the stage, and in the ticks, that embed tokens.

    A branch, so that no other stage computes them. It may hold collectives: those of the model's blocks are within a
    stage, all of whose devices take the same branch.
    """
    if not outer.model.prefix:
        return x_BTD
    at_use = None if how.gather == "step" else _gather_at_use(how)

    def run(x_BTD: jax.Array) -> jax.Array:
        return outer.run_prefix(x_BTD, info, gather=at_use, remat=how.remat)

    result: jax.Array = lax.cond(first, run, lambda x_BTD: x_BTD, x_BTD)
    return result


def _stage_share(x_BT: jax.Array) -> jax.Array:
    """Pick the tokens whose loss this stage computes, in the order in which `losses` has their hidden states."""
    parts, stages = lax.axis_size("tensor"), lax.axis_size("stage")
    by_part = x_BT.reshape(x_BT.shape[0], parts, -1).swapaxes(0, 1).reshape(parts, stages, -1)
    return lax.dynamic_index_in_dim(by_part, lax.axis_index("stage"), axis=1, keepdims=False).reshape(-1)


def _activations(held: Decoder, pieces: Batch, how: Numerics) -> jax.ShapeDtypeStruct:
    """Return shape and dtype of what a stage sends to the next."""
    _, batch_size, length = pieces["tokens"].shape
    shape = (batch_size, length // lax.axis_size("tensor"), held.model.embed_dim)
    return jax.ShapeDtypeStruct(shape, how.compute_dtype)


def _pieces(batch: Batch, how: Numerics) -> Batch:
    """Split this device's sequences into microbatches, tokens as `context` wants them: (B, T) -> (M, B / M, T).

    Every M-th sequence, so that the microbatches of all devices together are the same ones on every mesh.
    """
    shape = (-1, how.schedule.microbatches, batch["tokens"].shape[1])
    return {name: zigzag(array).reshape(shape).swapaxes(0, 1) for name, array in batch.items()}


def _sums(batch: Batch, objective: jax.Array, nats: jax.Array, weight: jax.Array) -> Sums:
    """Add up what the devices saw."""
    tokens = batch["tokens"]
    num_rows, num_columns = tokens.shape
    rows = lax.axis_index(BATCH_AXES) * num_rows + jnp.arange(num_rows)
    columns = lax.axis_index("context") * num_columns + jnp.arange(num_columns)
    partial_hash = batch_hash(tokens, batch["segment_ids"], rows=rows, columns=columns)
    counted_bytes = jnp.where(batch["weights"] > 0, batch["target_bytes"], 0).sum()
    axes = ("stage", *TOKEN_AXES)
    return Sums(
        objective=lax.psum(objective, axes),
        nats=lax.psum(nats, axes),
        weight=weight,
        target_bytes=lax.psum(counted_bytes, TOKEN_AXES),
        token_hash=lax.psum(partial_hash, TOKEN_AXES),
        routers=[],
    )
