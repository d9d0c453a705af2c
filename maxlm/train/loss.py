"""The per-device program of a training step: loss and gradients, every collective in sight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import RunConfig
from maxlm.data.token_hash import batch_hash
from maxlm.layers.moe import ROUTER_AXES
from maxlm.layers.stack import Remat, Stats
from maxlm.models.decoder import Decoder
from maxlm.ops.cross_entropy import LossOptions, cross_entropy
from maxlm.sharding.fsdp import cast, gather, vary, zeros_like_fp32
from maxlm.sharding.mesh import BATCH_AXES, BATCH_SPEC, TOKEN_AXES
from maxlm.sharding.parameters import map_parameters, partition_specs
from maxlm.sharding.tensor import enter

Batch = dict[str, jax.Array]


class Numerics(NamedTuple):
    """What decides how the loss is computed on this platform."""

    gather: str
    remat: Remat
    microbatches: int
    compute_dtype: Any
    attention_kernel: str
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


def numerics(config: RunConfig, attention_kernel: str, platform: str) -> Numerics:
    """Resolve the settings that depend on the platform: bfloat16 on accelerators, float32 on the CPU."""
    train = config.train
    dtype = {"auto": "float32" if platform == "cpu" else "bfloat16"}.get(train.compute_dtype, train.compute_dtype)
    options = LossOptions(train.z_loss, train.label_smoothing, train.loss_chunk_tokens)
    return Numerics(train.gather, train.remat, train.microbatches, jnp.dtype(dtype), attention_kernel, options)


def make_gradients(declared: Decoder, mesh: Mesh, how: Numerics) -> Callable[[Decoder, Batch], tuple[Decoder, Sums]]:
    """Return gradients(decoder, batch) -> (fp32 gradients laid out as the parameters, sums)."""
    specs = partition_specs(declared)

    def program(decoder: Decoder, batch: Batch) -> tuple[Decoder, Sums]:
        weight = lax.psum(batch["weights"].sum(), TOKEN_AXES)
        share = 1.0 / jnp.maximum(weight, 1.0)

        def microbatch(gradients: Decoder, piece: Batch) -> tuple[Decoder, tuple[jax.Array, jax.Array, Stats]]:
            def loss(held: Decoder) -> tuple[jax.Array, tuple[jax.Array, Stats]]:
                objective, nats, routers = _token_losses(_at_microbatch(held, how), piece, how)
                return objective * share + declared.balance_loss(routers) / how.microbatches, (nats, routers)

            (objective, (nats, routers)), piece_gradients = jax.value_and_grad(loss, has_aux=True)(held)
            return jax.tree.map(jnp.add, gradients, piece_gradients), (objective, nats, routers)

        held = _at_step(decoder, how)
        gradients, (objectives, nats, routers) = lax.scan(
            microbatch, zeros_like_fp32(held), _pieces(batch, how.microbatches)
        )
        sums = _sums(batch, objectives.sum(), nats.sum(), weight)
        routers = jax.tree.map(lambda x: lax.psum(x.sum(axis=0), ROUTER_AXES), routers)
        return _transpose_at_step(decoder, gradients, how), sums._replace(routers=routers)

    return jax.shard_map(program, mesh=mesh, in_specs=(specs, BATCH_SPEC), out_specs=(specs, _SUMS_SPECS))


def make_losses(declared: Decoder, mesh: Mesh, how: Numerics) -> Callable[[Decoder, Batch], Sums]:
    """Return losses(decoder, batch) -> sums: the forward pass alone."""

    def program(decoder: Decoder, batch: Batch) -> Sums:
        held = _at_step(decoder, how)

        def microbatch(_: None, piece: Batch) -> tuple[None, tuple[jax.Array, jax.Array]]:
            return None, _token_losses(_at_microbatch(held, how), piece, how)[:2]

        _, (objectives, nats) = lax.scan(microbatch, None, _pieces(batch, how.microbatches))
        weight = lax.psum(batch["weights"].sum(), TOKEN_AXES)
        return _sums(batch, objectives.sum() / jnp.maximum(weight, 1.0), nats.sum(), weight)

    return jax.shard_map(program, mesh=mesh, in_specs=(partition_specs(declared), BATCH_SPEC), out_specs=P())


def _at_step(decoder: Decoder, how: Numerics) -> Decoder:
    """Do once a step what the gather setting allows: `step` makes all parameters whole (ZeRO-1)."""
    decoder = vary(decoder)
    return gather(cast(decoder, how.compute_dtype)) if how.gather == "step" else decoder


def _at_microbatch(held: Decoder, how: Numerics) -> Decoder:
    """Make parameters whole once a microbatch: all of them (ZeRO-2), or those outside the stack (ZeRO-3)."""
    if how.gather == "step":
        return held
    if how.gather == "microbatch":
        return gather(cast(held, how.compute_dtype))
    return held.whole_outside_stack(how.compute_dtype)


def _transpose_at_step(decoder: Decoder, gradients: Decoder, how: Numerics) -> Decoder:
    """Bring gradients back to the parameters' layout along the transpose of `_at_step`, in fp32 throughout."""

    def forward(decoder: Decoder) -> Decoder:
        return gather(vary(decoder)) if how.gather == "step" else vary(decoder)

    _, transpose = jax.vjp(forward, decoder)
    (reduced,) = transpose(gradients)
    return map_parameters(lambda gradient: gradient, reduced)


def _token_losses(decoder: Decoder, batch: Batch, how: Numerics) -> tuple[jax.Array, jax.Array, Stats]:
    """Return (objective, nats) summed over this device's tokens, and what its routers did with them."""
    info = decoder.sequence_info(batch["positions"], batch["segment_ids"], how.attention_kernel)
    x_BTD, routers = decoder.hidden(
        batch["tokens"], info, gather_layers=how.gather == "layer", remat=how.remat, compute_dtype=how.compute_dtype
    )
    with jax.named_scope("loss"):
        x_TD = enter(x_BTD).reshape(-1, x_BTD.shape[-1])
        targets_T, weights_T = batch["targets"].reshape(-1), batch["weights"].reshape(-1)
        return *cross_entropy(x_TD, decoder.output_DV(), targets_T, weights_T, how.loss), routers


def _pieces(batch: Batch, microbatches: int) -> Batch:
    """Split this device's sequences into microbatches: (B, T) -> (M, B / M, T).

    Every M-th sequence, so that the microbatches of all devices together are the same ones on every mesh.
    """
    return {name: array.reshape(-1, microbatches, array.shape[1]).swapaxes(0, 1) for name, array in batch.items()}


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
