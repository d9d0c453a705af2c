"""A decoder-only language model: embedding, stack of blocks, norm, output projection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from maxlm.config.schema import ModelConfig, MoeConfig
from maxlm.layers.attention import Cache
from maxlm.layers.block import Block
from maxlm.layers.embedding import Embedding, Head
from maxlm.layers.moe import RouterStats, balance_loss, rebalanced_bias, router_metrics
from maxlm.layers.norm import build_norm
from maxlm.layers.sequence import SequenceInfo
from maxlm.layers.stack import Gather, Remat, Stats, build_prefix, build_stack, decode_stack, run_prefix, run_stack
from maxlm.ops.attention import Kernel
from maxlm.ops.rope import rotation
from maxlm.sharding.fsdp import cast, gather
from maxlm.sharding.parameters import with_value


class Decoder(nnx.Module):
    """Declares every parameter of a model; inside the shard_map, the per-device program over this device's part.

    Outside, the same object holds global arrays. Parameters are whole only between `whole_*` and their use.
    """

    def __init__(self, model: ModelConfig):
        self.embedding = Embedding(model)
        if model.prefix:
            self.prefix = build_prefix(model)
        self.stack = build_stack(model)
        self.norm = build_norm(model.norm, model.embed_dim)
        if not model.tie_embeddings:
            self.head = Head(model)
        self.model = model

    def sequence_info(
        self, positions_BT: jax.Array, segment_ids_BT: jax.Array, attention_kernel: Kernel, context_kind: str = "ring"
    ) -> SequenceInfo:
        """Precompute what every block needs to know about the tokens' places."""
        position = self.model.position
        turned = rotation(position, self.model.head_dim, positions_BT) if position.kind == "rope" else None
        return SequenceInfo(positions_BT, segment_ids_BT, turned, attention_kernel, context_kind)

    def embed(self, tokens_BT: jax.Array, info: SequenceInfo) -> jax.Array:
        """Look tokens up in the whole embedding, (B, T / tensor, D)."""
        with jax.named_scope("embedding"):
            return self.embedding(tokens_BT, info)

    def run_prefix(self, x_BTD: jax.Array, info: SequenceInfo, *, gather: Gather | None, remat: Remat) -> jax.Array:
        """Run the blocks before the pattern on embedded tokens; (B, T / tensor, D) -> the same."""
        with jax.named_scope("prefix"):
            return run_prefix(self._prefix(), x_BTD, info, gather=gather, remat=remat)

    def run_blocks(
        self, x_BTD: jax.Array, info: SequenceInfo, *, gather: Gather | None, remat: Remat
    ) -> tuple[jax.Array, Stats]:
        """Run the pattern's blocks, or the chunk of them that is there, on what the prefix or an earlier chunk made.

        `gather` turns shards of blocks into whole ones, at use; None where they are whole.
        """
        with jax.named_scope("stack"):
            return run_stack(self.stack, x_BTD, info, gather=gather, remat=remat)

    def balance_loss(self, stats: Stats) -> jax.Array | float:
        """Return this device's part of what the routers' imbalance costs; see `maxlm.layers.moe.balance_loss`."""
        return sum((balance_loss(router, moe) for _, router, moe in self._routers(stats)), 0.0)

    def rebalanced(self, before: Decoder, stats: Stats) -> Decoder:
        """Return the decoder with the router biases of `before`, moved against the loads of a step.

        They are state, not weights: whatever an optimizer did to them is undone.
        """
        copy: Decoder = jax.tree.map(lambda leaf: leaf, self)
        for place, router, moe in self._routers(stats):
            if moe.balance.bias_update:
                new, old = copy.stack[place].ffn, before.stack[place].ffn
                bias_LE = rebalanced_bias(old.router_bias[...], router.load_E, moe)
                new.router_bias = with_value(new.router_bias, bias_LE)
        return copy

    def router_metrics(self, stats: Stats) -> dict[int, dict[str, jax.Array]]:
        """Return the metrics of the routers by their block's place in the pattern, an entry per layer."""
        metrics = {}
        for place, router, moe in self._routers(stats):
            bias_LE = self.stack[place].ffn.router_bias[...] if moe.balance.bias_update else None
            metrics[place] = router_metrics(router, bias_LE, moe)
        return metrics

    def _routers(self, stats: Stats) -> Iterator[tuple[int, RouterStats, MoeConfig]]:
        """Yield the blocks of the pattern that have a router: place, what it did, configuration."""
        for place, (router, block) in enumerate(zip(stats, self.model.pattern, strict=True)):
            if router is not None and isinstance(block.ffn, MoeConfig):
                yield place, router, block.ffn

    def decode(
        self, tokens_BT: jax.Array, info: SequenceInfo, caches: list[Cache], start: jax.Array
    ) -> tuple[jax.Array, list[Cache]]:
        """Return normalised last hidden states of the newest tokens, (B, T, D); see `Attention.decode`."""
        x_BTD = self.embedding(tokens_BT, info)
        x_BTD, caches = decode_stack(self._prefix(), self.stack, x_BTD, info, caches, start)
        return self.norm(x_BTD), caches

    def with_stack(self, stack: nnx.List[Block]) -> Decoder:
        """Return the decoder around another stack, or around none: `nnx.List([])`."""
        copy: Decoder = jax.tree.map(lambda leaf: leaf, self)
        copy.stack = stack
        return copy

    def whole_outside_stack(self, compute_dtype: Any) -> Decoder:
        """Return the decoder with everything but the stack cast and gathered."""
        copy = self.with_stack(self.stack)
        copy.embedding = gather(cast(self.embedding, compute_dtype))
        copy.norm = gather(cast(self.norm, compute_dtype))
        if not self.model.tie_embeddings:
            copy.head = gather(cast(self.head, compute_dtype))
        return copy

    def _prefix(self) -> nnx.List[Block]:
        return self.prefix if self.model.prefix else nnx.List([])

    def output_DV(self) -> jax.Array:
        """Return this device's columns of the output projection."""
        return self.embedding.tokens[...].T if self.model.tie_embeddings else self.head.output[...]
