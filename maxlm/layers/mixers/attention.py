"""Multi-head, grouped-query and multi-query attention with rotary positions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from maxlm.config.layers.attention import AttentionConfig
from maxlm.config.model import ModelConfig
from maxlm.config.rope import RopePosition
from maxlm.kernels.mask import causal
from maxlm.kernels.shape import AttentionShape
from maxlm.layers.layer import Local, Mixer, StateArray
from maxlm.layers.norm import RMSNorm
from maxlm.layers.sequence import SequenceInfo
from maxlm.ops.attention import Kernel, attention
from maxlm.ops.context_attention import context_attention
from maxlm.ops.linear import linear
from maxlm.ops.rope import rotate, rotation
from maxlm.sharding.mesh import DECODING_AXES, FSDP_AXES
from maxlm.sharding.parameters import Constant, Normal, weight


class Cache(NamedTuple):
    """Keys and values of the tokens so far, (B, S, K, H), with room for the ones to come."""

    keys: Any
    values: Any


class Attention(Mixer):
    """Heads are split over `tensor`; inside, the sequence is split over `context` alone."""

    def __init__(self, model: ModelConfig, config: AttentionConfig):
        dim, heads, kv_heads, head_dim = (
            model.embed_dim,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
        )
        init, init_out = (
            Normal(model.init_std),
            Normal(model.init_std / (2 * model.num_layers) ** 0.5),
        )
        in_spec, zeros = P(FSDP_AXES, "tensor", None), Constant(0.0)
        self.query = weight((dim, heads, head_dim), in_spec, init, role="matrix", inputs=(0,))
        self.key = weight((dim, kv_heads, head_dim), in_spec, init, role="matrix", inputs=(0,))
        self.value = weight((dim, kv_heads, head_dim), in_spec, init, role="matrix", inputs=(0,))
        out_spec = P("tensor", None, FSDP_AXES)
        self.out = weight((heads, head_dim, dim), out_spec, init_out, role="matrix", inputs=(0, 1))
        if config.bias != "none":
            self.query_bias = weight((heads, head_dim), P("tensor", None), zeros, role="bias")
            self.key_bias = weight((kv_heads, head_dim), P("tensor", None), zeros, role="bias")
            self.value_bias = weight((kv_heads, head_dim), P("tensor", None), zeros, role="bias")
        if config.bias == "all":
            self.out_bias = weight((dim,), P(FSDP_AXES), zeros, role="bias")
        if config.qk_norm == "rmsnorm":
            self.query_norm = RMSNorm(head_dim, model.norm, P(None))
            self.key_norm = RMSNorm(head_dim, model.norm, P(None))
        if config.sinks:
            self.sink_bias = weight((heads,), P("tensor"), zeros, role="bias")
        self.config = config

    def prepare(self, info: SequenceInfo) -> Mapping[Hashable, Any]:
        """Ask for the cosines and sines of the positions, the same for all layers with these
        frequencies.
        """
        position = self.config.position
        if not isinstance(position, RopePosition):
            return {}
        return {self._rotation_name: rotation(position, self.config.head_dim, info.positions_BT)}

    def __call__(self, x_BTD: jax.Array, info: SequenceInfo) -> tuple[jax.Array, None]:
        """Attend within each document, across `context`; (B, T / tensor, D) -> (B, T / tensor, D),
        no report.
        """
        q_BTNH, k_BTKH, v_BTKH = self._project(info.enter(x_BTD), info)
        mask = info.mask if self.config.window is None else info.within(self.config.window)
        kernel, kind = self._kernel(info), info.context_kind
        out = context_attention(
            q_BTNH, k_BTKH, v_BTKH, mask, self._sink_N(), kernel=kernel, kind=kind
        )
        return self._project_out(out, info), None

    def decoding_state(self, batch_size: int, length: int, dtype: Any) -> Cache:
        """Keep the keys and values of every token."""
        shape = (batch_size, length, self.config.num_kv_heads, self.config.head_dim)
        return Cache(
            *(StateArray(shape, dtype, P(DECODING_AXES, None, "tensor", None)) for _ in range(2))
        )

    def decode(
        self, x_BTD: jax.Array, info: SequenceInfo, state: Cache, start_B: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Attend from the newest tokens to all that are kept and to themselves."""
        q_BTNH, k_BTKH, v_BTKH = self._project(x_BTD, info)
        keys, values = (
            _written(state.keys, k_BTKH, start_B),
            _written(state.values, v_BTKH, start_B),
        )
        # The causal mask hides the room for tokens to come: it lies behind every query.
        place = jnp.broadcast_to(jnp.arange(keys.shape[1], dtype=jnp.int32), keys.shape[:2])
        kept = {"kv_segments_BS": jnp.ones_like(place), "kv_place_BS": place}
        mask = causal(info.segment_ids_BT, info.positions_BT, self.config.window, **kept)
        out = attention(q_BTNH, keys, values, mask, self._sink_N(), self._kernel(info))
        return self._project_out(out, info), Cache(keys, values)

    def kernel_shapes(self, local: Local) -> dict[str, list[Any]]:
        """Return the one shape of attention on a device."""
        config = self.config
        by_heads = local.context if local.context_kind == "ulysses" else 1
        spread = local.context > by_heads
        chunk = local.length // (2 * local.context) if spread else local.length
        shape = AttentionShape(
            device_kind=local.device_kind,
            dtype=local.dtype,
            num_heads=config.num_heads // (local.tensor * by_heads),
            num_kv_heads=config.num_kv_heads // (local.tensor * by_heads),
            key_size=config.head_dim,
            value_size=config.head_dim,
            query_length=chunk,
            key_length=local.length if local.context_kind == "all_gather" else chunk,
            softcap=config.softcap,
            sinks=config.sinks,
            spread=spread,
        )
        return {"attention": [shape]}

    @property
    def _rotation_name(self) -> Hashable:
        return ("rotation", self.config.position, self.config.head_dim)

    def _kernel(self, info: SequenceInfo) -> Kernel:
        kernel: Kernel = info.kernels["attention"].with_softcap(self.config.softcap)
        return kernel

    def _sink_N(self) -> jax.Array | None:
        return self.sink_bias[...] if self.config.sinks else None

    def _project(
        self, x_BTD: jax.Array, info: SequenceInfo
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        q_BTNH = linear(x_BTD, self.query[...])
        k_BTKH = linear(x_BTD, self.key[...])
        v_BTKH = linear(x_BTD, self.value[...])
        if self.config.bias != "none":
            q_BTNH, k_BTKH = q_BTNH + self.query_bias[...], k_BTKH + self.key_bias[...]
            v_BTKH = v_BTKH + self.value_bias[...]
        if self.config.qk_norm == "rmsnorm":
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        if self._rotation_name in info.prepared:
            cosines, sines = info.prepared[self._rotation_name]
            q_BTNH, k_BTKH = rotate(q_BTNH, cosines, sines), rotate(k_BTKH, cosines, sines)
        return (
            checkpoint_name(q_BTNH, "query"),
            checkpoint_name(k_BTKH, "key"),
            checkpoint_name(v_BTKH, "value"),
        )

    def _project_out(self, out_BTNH: jax.Array, info: SequenceInfo) -> jax.Array:
        y_BTD = info.leave(linear(out_BTNH, self.out[...], contract=2))
        # After `leave`: every device would add the bias before its partial sum otherwise.
        return y_BTD + self.out_bias[...] if self.config.bias == "all" else y_BTD


def _written(cache_BSKH: jax.Array, new_BTKH: jax.Array, start_B: jax.Array) -> jax.Array:
    """Write each sequence's new tokens behind its own earlier ones."""

    def write(cache: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(cache, new, start, axis=0)

    return jax.vmap(write)(cache_BSKH, new_BTKH.astype(cache_BSKH.dtype), start_B)
