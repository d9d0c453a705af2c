"""Multi-head, grouped-query and multi-query attention with rotary positions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import AttentionConfig, ModelConfig
from maxlm.kernels.mask import causal
from maxlm.layers.norm import RMSNorm
from maxlm.layers.sequence import SequenceInfo
from maxlm.ops.attention import attention
from maxlm.ops.context_attention import context_attention
from maxlm.ops.linear import linear
from maxlm.ops.rope import rotate
from maxlm.sharding.context import places
from maxlm.sharding.mesh import FSDP_AXES
from maxlm.sharding.parameters import Constant, Normal, weight
from maxlm.sharding.tensor import enter, leave


class Cache(NamedTuple):
    """Keys and values of the tokens so far, (B, S, K, H), with room for the ones to come."""

    keys: jax.Array
    values: jax.Array


class Attention(nnx.Module):
    """Heads are split over `tensor`; inside, the sequence is split over `context` alone."""

    def __init__(self, model: ModelConfig, config: AttentionConfig):
        dim, heads, kv_heads, head_dim = model.embed_dim, model.num_heads, model.num_kv_heads, model.head_dim
        init, init_out = Normal(model.init_std), Normal(model.init_std / (2 * model.num_layers) ** 0.5)
        self.query = weight((dim, heads, head_dim), P(FSDP_AXES, "tensor", None), init)
        self.key = weight((dim, kv_heads, head_dim), P(FSDP_AXES, "tensor", None), init)
        self.value = weight((dim, kv_heads, head_dim), P(FSDP_AXES, "tensor", None), init)
        self.out = weight((heads, head_dim, dim), P("tensor", None, FSDP_AXES), init_out)
        if config.bias != "none":
            self.query_bias = weight((heads, head_dim), P("tensor", None), Constant(0.0))
            self.key_bias = weight((kv_heads, head_dim), P("tensor", None), Constant(0.0))
            self.value_bias = weight((kv_heads, head_dim), P("tensor", None), Constant(0.0))
        if config.bias == "all":
            self.out_bias = weight((dim,), P(FSDP_AXES), Constant(0.0))
        if config.qk_norm == "rmsnorm":
            self.query_norm = RMSNorm(head_dim, model.norm.epsilon, P(None))
            self.key_norm = RMSNorm(head_dim, model.norm.epsilon, P(None))
        if config.sinks:
            self.sink_bias = weight((heads,), P("tensor"), Constant(0.0))
        self.config = config

    def __call__(self, x_BTD: jax.Array, info: SequenceInfo) -> jax.Array:
        """Attend within each document, across `context`; (B, T / tensor, D) -> (B, T / tensor, D)."""
        q_BTNH, k_BTKH, v_BTKH = self._project(enter(x_BTD), info)
        mask = causal(info.segment_ids_BT, places(info.segment_ids_BT), self.config.window)
        kernel, kind = info.attention_kernel.with_softcap(self.config.softcap), info.context_kind
        out = context_attention(q_BTNH, k_BTKH, v_BTKH, mask, self._sink_N(), kernel=kernel, kind=kind)
        return self._project_out(out)

    def decode(self, x_BTD: jax.Array, info: SequenceInfo, cache: Cache, start: jax.Array) -> tuple[jax.Array, Cache]:
        """Attend from the T newest tokens, the first at index `start`, to all in the cache and to themselves."""
        q_BTNH, k_BTKH, v_BTKH = self._project(enter(x_BTD), info)
        keys = lax.dynamic_update_slice_in_dim(cache.keys, k_BTKH.astype(cache.keys.dtype), start, axis=1)
        values = lax.dynamic_update_slice_in_dim(cache.values, v_BTKH.astype(cache.values.dtype), start, axis=1)
        # The causal mask hides the room for tokens to come: it lies behind every query.
        place = jnp.broadcast_to(jnp.arange(keys.shape[1], dtype=jnp.int32), keys.shape[:2])
        new = start + places(info.segment_ids_BT)
        cached = {"kv_segments_BS": jnp.ones_like(place), "kv_place_BS": place}
        mask = causal(info.segment_ids_BT, new, self.config.window, **cached)
        kernel = info.attention_kernel.with_softcap(self.config.softcap)
        out = attention(q_BTNH, keys, values, mask, self._sink_N(), kernel)
        return self._project_out(out), Cache(keys, values)

    def _sink_N(self) -> jax.Array | None:
        return self.sink_bias[...] if self.config.sinks else None

    def _project(self, x_BTD: jax.Array, info: SequenceInfo) -> tuple[jax.Array, jax.Array, jax.Array]:
        q_BTNH = linear(x_BTD, self.query[...])
        k_BTKH = linear(x_BTD, self.key[...])
        v_BTKH = linear(x_BTD, self.value[...])
        if self.config.bias != "none":
            q_BTNH, k_BTKH = q_BTNH + self.query_bias[...], k_BTKH + self.key_bias[...]
            v_BTKH = v_BTKH + self.value_bias[...]
        if self.config.qk_norm == "rmsnorm":
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        if info.rotation is not None:
            q_BTNH, k_BTKH = rotate(q_BTNH, *info.rotation), rotate(k_BTKH, *info.rotation)
        return checkpoint_name(q_BTNH, "query"), checkpoint_name(k_BTKH, "key"), checkpoint_name(v_BTKH, "value")

    def _project_out(self, out_BTNH: jax.Array) -> jax.Array:
        y_BTD = leave(linear(out_BTNH, self.out[...], contract=2))
        # After `leave`: every device would add the bias before its partial sum otherwise.
        return y_BTD + self.out_bias[...] if self.config.bias == "all" else y_BTD
