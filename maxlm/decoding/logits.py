"""The logits of whole sequences at once: the forward pass of training, without a loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import MeshConfig, RunConfig
from maxlm.kernels.mask import with_least
from maxlm.layers.sequence import SequenceInfo
from maxlm.layers.stack import BlockExecution
from maxlm.models.decoder import Decoder, logit_rule_of
from maxlm.sharding.context import places
from maxlm.sharding.fsdp import cast, gather, vary
from maxlm.sharding.mesh import BATCH_SPEC, DECODING_AXES
from maxlm.sharding.parameters import partition_specs
from maxlm.sharding.tensor import enter
from maxlm.train.objectives import build_objective
from maxlm.train.setup import choose_kernels


def make_logits(
    config: RunConfig, mesh_sizes: MeshConfig, declared: Decoder, mesh: Mesh, dtype: jnp.dtype
) -> Callable[..., jax.Array]:
    """Return logits(decoder, tokens_BT, segment_ids_BT, positions_BT, length=T) -> fp32 (B, T, V),
    compiled once for each shape, and for each length that layers tell apart.

    Args:
      config: the run, of which the model and the objective's mask matter.
      mesh_sizes: devices along each axis; `stage` and `context` have size 1.
      declared: the decoder, with or without values.
      mesh: its devices.
      dtype: of weights and activations.
    """
    objective = build_objective(config.objective, logit_rule=logit_rule_of(config.model))

    def program(
        decoder: Decoder,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array,
        positions_BT: jax.Array,
        *,
        length: int,
    ) -> jax.Array:
        decoder = vary(decoder).whole_outside_stack(dtype)
        mask = objective.mask({"segment_ids": segment_ids_BT}, places(tokens_BT))
        kernels = _kernels(config, mesh_sizes, declared, mesh, dtype, length=tokens_BT.shape[1])
        mask = with_least(mask, segment_ids_BT)
        info = SequenceInfo(positions_BT, segment_ids_BT, mask, length, kernels)
        blocks = BlockExecution(gather=lambda block: gather(cast(block, dtype)))
        hidden_BTD, _, _ = decoder(tokens_BT, info, blocks)
        return decoder.logits(enter(hidden_BTD))

    @functools.partial(jax.jit, static_argnames=("length",))
    def logits(decoder: Decoder, *fields: jax.Array, length: int) -> jax.Array:
        mapped = jax.shard_map(
            functools.partial(program, length=length),
            mesh=mesh,
            in_specs=(partition_specs(declared), BATCH_SPEC, BATCH_SPEC, BATCH_SPEC),
            out_specs=P(DECODING_AXES, None, "tensor"),
        )
        result: jax.Array = mapped(decoder, *fields)
        return result

    def of_length(decoder: Decoder, *fields: jax.Array, length: int) -> jax.Array:
        return logits(decoder, *fields, length=declared.model.told_length(length))

    return of_length


def _kernels(
    config: RunConfig,
    mesh_sizes: MeshConfig,
    declared: Decoder,
    mesh: Mesh,
    dtype: jnp.dtype,
    *,
    length: int,
) -> dict[str, Any]:
    data = config.data.model_copy(update={"sequence_length": length})
    of_length = config.model_copy(update={"data": data})
    device = mesh.devices.flat[0]
    choices = choose_kernels(of_length, mesh_sizes, declared, device=device, dtype=dtype)
    return {operation: choice.kernel for operation, choice in choices.items()}
