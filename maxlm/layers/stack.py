"""The layer stack: single blocks, then a scan over groups of blocks. FSDP lives here, and nowhere else in the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from maxlm.config.schema import ModelConfig, TrainConfig
from maxlm.layers.attention import Cache
from maxlm.layers.block import Block
from maxlm.layers.moe import RouterStats
from maxlm.layers.sequence import SequenceInfo
from maxlm.sharding.fsdp import is_parameter_gather
from maxlm.sharding.host import HOST_MEMORY
from maxlm.sharding.parameters import stack_layers

Gather = Callable[[Block], Block]
Stats = list[RouterStats | None]
"""What routers did, for each block of the pattern, stacked over its layers; None for a block without router."""

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


def build_remat(train: TrainConfig) -> Remat:
    """Read `train.remat` and the activations of `train.offload`."""
    choices = {} if isinstance(train.remat, str) else train.remat.model_dump()
    kept = {choice: tuple(name for name in choices if choices[name] == choice) for choice in ("save", "offload")}
    inputs = (_BLOCK_INPUT,) if "activations" in train.offload else ()
    return Remat(train.remat == "none", kept["save"], (*kept["offload"], *inputs))


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
    run = _rematerialised(_run_block(info, gather), remat, gathers=gather is not None, prevent_cse=True)
    for block in prefix:
        x_BTD, _ = run(block, x_BTD)
    return x_BTD


def run_stack(
    stack: nnx.List[Block], x_BTD: jax.Array, info: SequenceInfo, *, gather: Gather | None, remat: Remat
) -> tuple[jax.Array, Stats]:
    """Run the pattern's blocks; (B, T / tensor, D) -> (B, T / tensor, D), and what their routers did.

    Args:
      stack: this device's part of the stacked blocks.
      x_BTD: embedded tokens.
      info: where the tokens stand.
      gather: turns a block's parameter shards into whole parameters, at use; None where they are whole already.
      remat: what each block's backward pass computes again.
    """
    # In a scan the compiler cannot merge the recomputation with the forward pass; elsewhere it would.
    run = _rematerialised(_run_block(info, gather), remat, gathers=gather is not None, prevent_cse=False)

    def group(x_BTD: jax.Array, shards: nnx.List[Block]) -> tuple[jax.Array, Stats]:
        group_stats = []
        for shard in shards:
            x_BTD, stats = run(shard, x_BTD)
            group_stats.append(stats)
        return x_BTD, group_stats

    result: tuple[jax.Array, Stats] = lax.scan(group, x_BTD, stack)
    return result


def _run_block(info: SequenceInfo, gather: Gather | None) -> Callable[..., tuple[jax.Array, RouterStats | None]]:
    def run(shard: Block, x_BTD: jax.Array) -> tuple[jax.Array, RouterStats | None]:
        x_BTD = checkpoint_name(x_BTD, _BLOCK_INPUT)
        return (gather(shard) if gather else shard)(x_BTD, info)

    return run


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


def _rematerialised(
    function: Callable[..., Any], remat: Remat, *, gathers: bool, prevent_cse: bool
) -> Callable[..., Any]:
    """Wrap a block so that the backward pass recomputes what `remat` does not keep.

    Whole parameters are never kept where they are gathered layer by layer: they would be all parameters, unsharded.
    """
    if remat.everything and not gathers:
        return function

    def keep_all_but_gathers(primitive, *arguments, **parameters):  # type: ignore[no-untyped-def]
        return not is_parameter_gather(primitive, *arguments, **parameters)

    named = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=remat.on_device,
        names_which_can_be_offloaded=remat.on_host,
        offload_src="device",
        offload_dst=HOST_MEMORY,
    )
    policy = keep_all_but_gathers if remat.everything else named
    return jax.checkpoint(function, policy=policy, prevent_cse=prevent_cse)
