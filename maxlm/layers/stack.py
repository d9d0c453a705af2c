"""The layer stack: single blocks, then a scan over groups of blocks. FSDP lives here, and nowhere else in the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import lax

from maxlm.config.schema import ModelConfig, RematNames
from maxlm.layers.attention import Cache
from maxlm.layers.block import Block
from maxlm.layers.moe import RouterStats
from maxlm.layers.sequence import SequenceInfo
from maxlm.sharding.fsdp import is_parameter_gather
from maxlm.sharding.parameters import stack_layers

Remat = str | RematNames
Gather = Callable[[nnx.List[Block]], nnx.List[Block]]
Stats = list[RouterStats | None]
"""What routers did, for each block of the pattern, stacked over its layers; None for a block without router."""


def build_prefix(model: ModelConfig) -> nnx.List[Block]:
    """Declare the blocks that stand once, before the pattern."""
    return nnx.List([Block(model, block) for block in model.prefix])


def build_stack(model: ModelConfig) -> nnx.List[Block]:
    """Declare the blocks of the pattern, each stacked over the pattern's repetitions."""
    repeats = (model.num_layers - len(model.prefix)) // len(model.pattern)
    return nnx.List([stack_layers(Block(model, block), repeats) for block in model.pattern])


def run_prefix(
    prefix: nnx.List[Block], x_BTD: jax.Array, info: SequenceInfo, *, gather: Gather | None, remat: Remat
) -> jax.Array:
    """Run the blocks before the pattern, which have no router; the arguments are those of `run_stack`."""
    run = _group(info, gather, remat)
    for block in prefix:
        x_BTD, _ = run(x_BTD, nnx.List([block]))
    return x_BTD


def run_stack(
    stack: nnx.List[Block], x_BTD: jax.Array, info: SequenceInfo, *, gather: Gather | None, remat: Remat
) -> tuple[jax.Array, Stats]:
    """Run the pattern's blocks; (B, T / tensor, D) -> (B, T / tensor, D), and what their routers did.

    Args:
      stack: this device's part of the stacked blocks.
      x_BTD: embedded tokens.
      info: where the tokens stand.
      gather: turns a group's parameter shards into whole parameters, at use; None where they are whole already.
      remat: what the backward pass computes again.
    """
    result: tuple[jax.Array, Stats] = lax.scan(_group(info, gather, remat), x_BTD, stack)
    return result


def _group(info: SequenceInfo, gather: Gather | None, remat: Remat) -> Callable[..., tuple[jax.Array, Stats]]:
    """Return run(x, group of blocks) -> (x, what their routers did)."""

    def group(x_BTD: jax.Array, shard: nnx.List[Block]) -> tuple[jax.Array, Stats]:
        group_stats = []
        for block in gather(shard) if gather else shard:
            x_BTD, stats = block(x_BTD, info)
            group_stats.append(stats)
        return x_BTD, group_stats

    return _rematerialised(group, remat, gathers=gather is not None)


def decode_stack(
    prefix: nnx.List[Block],
    stack: nnx.List[Block],
    x_BTD: jax.Array,
    info: SequenceInfo,
    caches: list[Cache],
    start: jax.Array,
) -> tuple[jax.Array, list[Cache]]:
    """Run all blocks on the newest tokens; a cache for each block of the prefix, then one for each of the pattern.

    Those of the pattern are stacked, layers first.
    """

    def group(x_BTD: jax.Array, layer: tuple[nnx.List[Block], list[Cache]]) -> tuple[jax.Array, list[Cache]]:
        new_caches = []
        for block, cache in zip(*layer, strict=True):
            x_BTD, new_cache = block.decode(x_BTD, info, cache, start)
            new_caches.append(new_cache)
        return x_BTD, new_caches

    prefix_caches = []
    for block, cache in zip(prefix, caches, strict=False):
        x_BTD, new_cache = block.decode(x_BTD, info, cache, start)
        prefix_caches.append(new_cache)
    x_BTD, stack_caches = lax.scan(group, x_BTD, (stack, caches[len(prefix) :]))
    return x_BTD, prefix_caches + stack_caches


def _rematerialised(function: Callable[..., Any], remat: Remat, *, gathers: bool) -> Callable[..., Any]:
    """Wrap a group of blocks so that the backward pass recomputes what `remat` does not keep.

    Whole parameters are never kept where they are gathered layer by layer: they would be all parameters, unsharded.
    """
    if isinstance(remat, RematNames):
        policy = jax.checkpoint_policies.save_only_these_names(*remat.names)
    elif remat == "full":
        policy = jax.checkpoint_policies.nothing_saveable
    elif gathers:

        def policy(primitive, *arguments, **parameters):  # type: ignore[no-untyped-def]
            return not is_parameter_gather(primitive, *arguments, **parameters)
    else:
        return function
    # In a scan the compiler cannot merge the recomputation with the forward pass: no barriers needed.
    return jax.checkpoint(function, policy=policy, prevent_cse=False)
