"""The layer stack: a scan over groups of blocks. FSDP lives here, and nowhere else in the model."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jax import lax

from maxlm.config.schema import ModelConfig, RematNames
from maxlm.layers.attention import Cache
from maxlm.layers.block import Block
from maxlm.layers.sequence import SequenceInfo
from maxlm.sharding.fsdp import is_parameter_gather
from maxlm.sharding.parameters import stack_layers

Remat = str | RematNames
Gather = Callable[[nnx.List[Block]], nnx.List[Block]]


def build_stack(model: ModelConfig) -> nnx.List[Block]:
    """Declare the blocks of the pattern, each stacked over the pattern's repetitions."""
    repeats = model.num_layers // len(model.pattern)
    return nnx.List([stack_layers(Block(model, block), repeats) for block in model.pattern])


def run_stack(
    stack: nnx.List[Block], x_BTD: jax.Array, info: SequenceInfo, *, gather: Gather | None, remat: Remat
) -> jax.Array:
    """Run all blocks; (B, T / tensor, D) -> (B, T / tensor, D).

    Args:
      stack: this device's part of the stacked blocks.
      x_BTD: embedded tokens.
      info: where the tokens stand.
      gather: turns a group's parameter shards into whole parameters, at use; None where they are whole already.
      remat: what the backward pass computes again.
    """

    def group(x_BTD: jax.Array, shard: nnx.List[Block]) -> jax.Array:
        for block in gather(shard) if gather else shard:
            x_BTD = block(x_BTD, info)
        return x_BTD

    run = _rematerialised(group, remat, gathers=gather is not None)
    x_BTD, _ = lax.scan(lambda x, shard: (run(x, shard), None), x_BTD, stack)
    return x_BTD


def decode_stack(
    stack: nnx.List[Block], x_BTD: jax.Array, info: SequenceInfo, caches: list[Cache], start: jax.Array
) -> tuple[jax.Array, list[Cache]]:
    """Run all blocks on the newest tokens; a stacked cache for each block of the pattern, layers first."""

    def group(x_BTD: jax.Array, layer: tuple[nnx.List[Block], list[Cache]]) -> tuple[jax.Array, list[Cache]]:
        new_caches = []
        for block, cache in zip(*layer, strict=True):
            x_BTD, new_cache = block.decode(x_BTD, info, cache, start)
            new_caches.append(new_cache)
        return x_BTD, new_caches

    return lax.scan(group, x_BTD, (stack, caches))


def _rematerialised(function: Callable[..., jax.Array], remat: Remat, *, gathers: bool) -> Callable[..., jax.Array]:
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
