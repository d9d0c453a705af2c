"""Logits of whole sequences, by the forward pass that training runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import MeshConfig
from maxlm.kernels.mask import causal
from maxlm.layers.sequence import SequenceInfo
from maxlm.layers.stack import BlockExecution
from maxlm.ops import OPERATIONS
from maxlm.sharding.fsdp import gather, vary
from maxlm.sharding.mesh import build_mesh
from maxlm.sharding.parameters import partition_specs

ONE_DEVICE = MeshConfig(fsdp=1)


@functools.cache
def one_device():
    return build_mesh(ONE_DEVICE, jax.devices()[:1])


def logits_of(decoder, tokens, segments):
    """Return fp32 (B, T, V) of rows of tokens; `segments` are their documents' numbers, from 1."""
    tokens, segments = np.asarray(tokens), np.asarray(segments)
    places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    starts = np.diff(segments, axis=1, prepend=-1) != 0
    positions = places - np.maximum.accumulate(np.where(starts, places, 0), axis=1)

    def program(decoder, tokens_BT, segments_BT, positions_BT):
        decoder = gather(vary(decoder))
        kernels = {name: one.reference(jax.devices()[0]) for name, one in OPERATIONS.items()}
        mask = causal(segments_BT, positions_BT)
        length = tokens_BT.shape[1]
        info = SequenceInfo(positions_BT, segments_BT, mask, length, kernels=kernels)
        x_BTD, *_ = decoder(tokens_BT, info, BlockExecution())
        return decoder.logits(x_BTD)

    specs = (partition_specs(decoder), P(), P(), P())
    mapped = jax.shard_map(
        program, mesh=one_device(), in_specs=specs, out_specs=P(), check_vma=False
    )
    rows = (jnp.asarray(array, jnp.int32) for array in (tokens, segments, positions))
    return np.asarray(jax.jit(mapped)(decoder, *rows))
