"""Whole sequences at once: the forward pass of training, and what is read from its last hidden
states: logits, the hidden states themselves, or how likely each next token was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
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


class Reading(NamedTuple):
    """What is read from the last hidden states.

    Attributes:
      function: (decoder, hidden_BTD, tokens_BT) -> fp32 array, B and T in front.
      spec: how it lies on the devices.
    """

    function: Callable[[Decoder, jax.Array, jax.Array], jax.Array]
    spec: P


def _logits(decoder: Decoder, hidden_BTD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    del tokens_BT
    return decoder.logits(hidden_BTD)


def _hidden(decoder: Decoder, hidden_BTD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    del decoder, tokens_BT
    # All devices along `tensor` hold the same: their mean is it.
    return lax.pmean(hidden_BTD.astype(jnp.float32), "tensor")


LOGITS = Reading(_logits, P(DECODING_AXES, None, "tensor"))
"""(B, T, V): of the token after each token."""
HIDDEN = Reading(_hidden, P(DECODING_AXES))
"""(B, T, D): normalised, as the output projection takes them."""


def nats_of(num_ids: int) -> Reading:
    """Return the reading of (B, T): -ln p of the token after each token, among so many ids; the last
    column means nothing.
    """

    def nats(decoder: Decoder, hidden_BTD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
        logits_BTV = decoder.logits(hidden_BTD)
        columns = logits_BTV.shape[-1]
        first = lax.axis_index("tensor") * columns
        ids_V = first + jnp.arange(columns)
        logits_BTV = jnp.where(ids_V < num_ids, logits_BTV, -jnp.inf)
        largest_BT = lax.pmax(logits_BTV.max(axis=-1), "tensor")
        sums_BT = lax.psum(jnp.exp(logits_BTV - largest_BT[..., None]).sum(axis=-1), "tensor")
        is_next_BTV = ids_V == jnp.roll(tokens_BT, -1, axis=1)[..., None]
        next_BT = lax.psum(jnp.where(is_next_BTV, logits_BTV, 0.0).sum(axis=-1), "tensor")
        return largest_BT + jnp.log(sums_BT) - next_BT

    return Reading(nats, P(DECODING_AXES))


def make_forward(
    config: RunConfig,
    mesh_sizes: MeshConfig,
    declared: Decoder,
    mesh: Mesh,
    dtype: jnp.dtype,
    *,
    reading: Reading = LOGITS,
) -> Callable[..., jax.Array]:
    """Return forward(decoder, tokens_BT, segment_ids_BT, positions_BT, length=T) -> what is read,
    compiled once for each shape, and for each length that layers tell apart.

    Args:
      config: the run, of which the model and the objective's mask matter.
      mesh_sizes: devices along each axis; `stage` and `context` have size 1.
      declared: the decoder, with or without values.
      mesh: its devices.
      dtype: of weights and activations.
      reading: what is read from the last hidden states.
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
        return reading.function(decoder, enter(hidden_BTD), tokens_BT)

    @functools.partial(jax.jit, static_argnames=("length",))
    def forward(decoder: Decoder, *fields: jax.Array, length: int) -> jax.Array:
        mapped = jax.shard_map(
            functools.partial(program, length=length),
            mesh=mesh,
            in_specs=(partition_specs(declared), BATCH_SPEC, BATCH_SPEC, BATCH_SPEC),
            out_specs=reading.spec,
        )
        result: jax.Array = mapped(decoder, *fields)
        return result

    def of_length(decoder: Decoder, *fields: jax.Array, length: int) -> jax.Array:
        return forward(decoder, *fields, length=declared.model.told_length(length))

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
