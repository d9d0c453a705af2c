"""Multi-head, grouped-query and multi-query attention, and how it knows positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from maxlm.config.layers.attention import AttentionConfig
from maxlm.config.model import ModelConfig
from maxlm.config.positions.distance import AlibiPosition, RelativePosition
from maxlm.config.positions.rope import RopePosition
from maxlm.kernels.mask import Mask, causal, in_chunks
from maxlm.kernels.shape import AttentionShape, Scoring
from maxlm.layers.head_norm import build_head_norm, unit_rms
from maxlm.layers.layer import Local, Mixer, StateArray
from maxlm.layers.sequence import SequenceInfo
from maxlm.ops.attention import attention
from maxlm.ops.context_attention import context_attention
from maxlm.ops.linear import linear
from maxlm.ops.positions.distances import alibi_slopes, bucket_edges
from maxlm.ops.positions.rope import rotate, rotation
from maxlm.sharding.mesh import DECODING_AXES, FSDP_AXES
from maxlm.sharding.parameters import Constant, Normal, weight
from maxlm.sharding.tensor import once_of_tensor


class Cache(NamedTuple):
    """Keys and values of the tokens so far, (B, K, S, H), with room for the ones to come: heads
    before tokens, as a batch of products takes them.
    """

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
        if config.qk_norm in ("rmsnorm", "rmsnorm_all"):
            self.query_norm = build_head_norm(config.qk_norm, heads, head_dim, model.norm)
            self.key_norm = build_head_norm(config.qk_norm, kv_heads, head_dim, model.norm)
        if isinstance(config.position, RelativePosition):
            shape, spec = (heads, config.position.num_buckets), P("tensor", None)
            self.relative_bias = weight(shape, spec, init, role="bias", fp32=True)
        if config.sinks:
            self.sink_bias = weight((heads,), P("tensor"), zeros, role="bias")
        self.config, self.epsilon = config, model.norm.epsilon
        self.scale = config.scale or model.score_scale(config.head_dim)

    def prepare(self, info: SequenceInfo) -> Mapping[Hashable, Any]:
        """Ask for the cosines and sines of the positions, the same for all layers with these
        frequencies.
        """
        position = self.config.position
        if not isinstance(position, RopePosition):
            return {}
        turned = rotation(position, self.config.head_dim, info.positions_BT, info.length)
        return {self._rotation_name: turned}

    def __call__(self, x_BTD: jax.Array, info: SequenceInfo) -> tuple[jax.Array, None]:
        """Attend within each document, across `context`; (B, T / tensor, D) -> (B, T / tensor, D),
        no report.
        """
        q_BTNH, k_BTKH, v_BTKH = self._project(info.enter(x_BTD), info)
        mask = info.within(self.config.window, self.config.chunk)
        kernel, kind = info.kernels["attention"], info.context_kind
        how = {"kernel": kernel, "kind": kind, "scoring": self._scoring()}
        out = context_attention(q_BTNH, k_BTKH, v_BTKH, mask, self._sink_N(), **how)
        return self._project_out(out, info), None

    def decoding_state(self, batch_size: int, length: int, dtype: Any) -> Cache:
        """Keep the keys and values of every token."""
        shape = (batch_size, self.config.num_kv_heads, length, self.config.head_dim)
        return Cache(
            *(StateArray(shape, dtype, P(DECODING_AXES, "tensor", None, None)) for _ in range(2))
        )

    def decode(
        self, x_BTD: jax.Array, info: SequenceInfo, state: Cache, start_B: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Attend from the newest tokens to all that are kept and to themselves."""
        q_BTNH, k_BTKH, v_BTKH = self._project(x_BTD, info)
        kept = Cache(
            written(state.keys, k_BTKH.swapaxes(1, 2), start_B, axis=2),
            written(state.values, v_BTKH.swapaxes(1, 2), start_B, axis=2),
        )
        keys, values = (array.swapaxes(1, 2) for array in kept)
        mask = kept_mask(info, keys.shape[1], self.config.window, self.config.chunk)
        kernel, scoring = info.kernels["attention"], self._scoring()
        out = attention(q_BTNH, keys, values, mask, self._sink_N(), kernel, scoring)
        return self._project_out(out, info), kept

    def kernel_shapes(self, local: Local) -> dict[str, list[Any]]:
        """Return the one shape of attention on a device."""
        config = self.config
        by_distance = {"alibi": "slopes", "relative": "table"}.get(config.position.kind)
        shape = shape_on_device(
            local,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            key_size=config.head_dim,
            value_size=config.head_dim,
            softcap=config.softcap,
            sinks=config.sinks,
            by_distance=by_distance,
            causal=config.chunk is None,
        )
        return {"attention": [shape]}

    @property
    def _rotation_name(self) -> Hashable:
        return ("rotation", self.config.position, self.config.head_dim)

    def _scoring(self) -> Scoring:
        """Return how scores are made, of this device's heads."""
        config, position = self.config, self.config.position
        scoring = Scoring(scale=self.scale, softcap=config.softcap)
        if isinstance(position, AlibiPosition):
            count = self.query[...].shape[1]
            first = lax.axis_index("tensor") * count
            slopes_N = jnp.asarray(alibi_slopes(config.num_heads))
            own_N = lax.dynamic_slice_in_dim(slopes_N, first, count)
            return dataclasses.replace(scoring, slopes_N=own_N)
        if isinstance(position, RelativePosition):
            edges = bucket_edges(position.num_buckets, position.max_distance)
            return dataclasses.replace(scoring, table_NX=self.relative_bias[...], edges=edges)
        return scoring

    def _sink_N(self) -> jax.Array | None:
        return self.sink_bias[...] if self.config.sinks else None

    def _project(
        self, x_BTD: jax.Array, info: SequenceInfo
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        biased = self.config.bias != "none"
        q_BTNH = linear(x_BTD, self.query[...], self.query_bias[...] if biased else None)
        k_BTKH = linear(x_BTD, self.key[...], self.key_bias[...] if biased else None)
        v_BTKH = linear(x_BTD, self.value[...], self.value_bias[...] if biased else None)
        q_BTNH, k_BTKH = self._positioned(q_BTNH, k_BTKH, info)
        return (
            checkpoint_name(q_BTNH, "query"),
            checkpoint_name(k_BTKH, "key"),
            checkpoint_name(v_BTKH, "value"),
        )

    def _positioned(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, info: SequenceInfo
    ) -> tuple[jax.Array, jax.Array]:
        """Normalise and rotate queries and keys, and let queries grow."""
        config, position = self.config, self.config.position
        if config.qk_norm in ("rmsnorm", "rmsnorm_all"):
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        if isinstance(position, RopePosition):
            turn = *info.prepared[self._rotation_name], position.layout
            q_BTNH, k_BTKH = rotate(q_BTNH, *turn), rotate(k_BTKH, *turn)
        if config.qk_norm == "l2":
            q_BTNH, k_BTKH = unit_rms(q_BTNH, self.epsilon), unit_rms(k_BTKH, self.epsilon)
        if config.temperature is not None:
            stretches_BT = (info.positions_BT + 1) // config.temperature.floor
            grown_BT = 1 + config.temperature.scale * jnp.log1p(stretches_BT.astype(jnp.float32))
            q_BTNH = (q_BTNH * grown_BT[:, :, None, None]).astype(q_BTNH.dtype)
        return q_BTNH, k_BTKH

    def _project_out(self, out_BTNH: jax.Array, info: SequenceInfo) -> jax.Array:
        bias_D = once_of_tensor(self.out_bias[...]) if self.config.bias == "all" else None
        return info.leave(linear(out_BTNH, self.out[...], bias_D, contract=2))


def shape_on_device(
    local: Local, *, num_heads: int, num_kv_heads: int, **layer: Any
) -> AttentionShape:
    """Return what a layer asks of a kernel on a device.

    Args:
      local: the device's part of the run.
      num_heads: of the whole layer.
      num_kv_heads: likewise.
      **layer: fields of `AttentionShape` that do not depend on the mesh.
    """
    by_heads = local.context if local.context_kind == "ulysses" else 1
    spread = local.context > by_heads
    chunk = local.length // (2 * local.context) if spread else local.length
    return AttentionShape(
        device_kind=local.device_kind,
        dtype=local.dtype,
        num_heads=num_heads // (local.tensor * by_heads),
        num_kv_heads=num_kv_heads // (local.tensor * by_heads),
        query_length=chunk,
        key_length=local.length if local.context_kind == "all_gather" else chunk,
        spread=spread,
        **layer,
    )


def kept_mask(
    info: SequenceInfo, length: int, window: int | None = None, chunk: int | None = None
) -> Mask:
    """Return which of the `length` tokens that there is room for the newest ones see."""
    # The causal mask hides the room for tokens to come: it lies behind every query.
    shape = (info.positions_BT.shape[0], length)
    place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), shape)
    kept = {"kv_segments_BS": jnp.ones_like(place), "kv_place_BS": place}
    mask = causal(info.segment_ids_BT, info.positions_BT, window, **kept)
    return mask if chunk is None else in_chunks(mask, place, chunk)


def written(cache: jax.Array, new: jax.Array, start_B: jax.Array, *, axis: int = 1) -> jax.Array:
    """Write what is kept of each sequence's new tokens behind its earlier ones, along `axis`."""

    def write(cache: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(cache, new, start, axis=axis - 1)

    return jax.vmap(write)(cache, new.astype(cache.dtype), start_B)
