"""Multi-head latent attention (arXiv:2405.04434, section 2.1), with low-rank or full queries.

A token's latent is a normalised vector, from which each head makes its key and its value, and a
second key that carries the position and is the same for all heads. Training makes keys and values
from it and attends as ever. Decoding keeps latents alone and attends to them: with q^T (U c) = (U^T
q)^T c, the matrix that makes a head's keys is multiplied with its query instead, and the one that
makes its values with what the head has gathered.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from maxlm.config.layers.mla import MlaConfig
from maxlm.config.model import ModelConfig
from maxlm.kernels.shape import Scoring
from maxlm.layers.layer import Local, Mixer, StateArray
from maxlm.layers.mixers.attention import kept_mask, shape_on_device, written
from maxlm.layers.norm import RMSNorm
from maxlm.layers.sequence import SequenceInfo
from maxlm.ops.attention import attention
from maxlm.ops.context_attention import context_attention
from maxlm.ops.linear import linear
from maxlm.ops.positions.rope import rotate, rotation
from maxlm.sharding.mesh import DECODING_AXES, FSDP_AXES
from maxlm.sharding.parameters import Normal, weight
from maxlm.sharding.tensor import same_everywhere


class Mla(Mixer):
    """Heads are split over `tensor`. A token's latents are made on the one device of `tensor` that
    holds it between blocks, and gathered in its place: they are shorter.

    Shape letters besides the usual: R kv_rank, H nope_dim + rope_dim, U value_dim.
    """

    def __init__(self, model: ModelConfig, config: MlaConfig):
        dim, heads, rank = model.embed_dim, config.num_heads, config.kv_rank
        std = model.init_std
        down, up = P(FSDP_AXES, None), P(FSDP_AXES, "tensor", None)

        def matrix(shape: tuple[int, ...], spec: P) -> Any:
            return weight(shape, spec, Normal(std), role="matrix", inputs=(0,))

        if config.query_rank is None:
            self.query = matrix((dim, heads, config.key_dim), up)
        else:
            self.query_down = matrix((dim, config.query_rank), down)
            self.query_norm = RMSNorm(config.query_rank, model.norm, P(None))
            self.query_up = matrix((config.query_rank, heads, config.key_dim), up)
        self.kv_down = matrix((dim, rank), down)
        self.kv_norm = RMSNorm(rank, model.norm, P(None))
        self.key_rope = matrix((dim, config.rope_dim), down)
        self.key_up = matrix((rank, heads, config.nope_dim), up)
        self.value_up = matrix((rank, heads, config.value_dim), up)
        out, init = P("tensor", None, FSDP_AXES), Normal(std / (2 * model.num_layers) ** 0.5)
        shape = (heads, config.value_dim, dim)
        self.out = weight(shape, out, init, role="matrix", inputs=(0, 1))
        self.config = config
        self.scale = config.scale or model.score_scale(config.key_dim) or config.key_dim**-0.5

    def prepare(self, info: SequenceInfo) -> Mapping[Hashable, Any]:
        """Ask for the cosines and sines of the positions, the same for all layers with these
        frequencies.
        """
        position, dim = self.config.position, self.config.rope_dim
        return {self._rotation_name: rotation(position, dim, info.positions_BT, info.length)}

    def __call__(self, x_BTD: jax.Array, info: SequenceInfo) -> tuple[jax.Array, None]:
        """Attend within each document, across `context`; (B, T / tensor, D) -> (B, T / tensor, D),
        no report.
        """
        # What queries are made from, and the two parts of the latent: 3 all-gathers over `tensor`.
        source, latent_BTR, key_rope = map(info.enter, self._compress(x_BTD))
        q_BTNH = checkpoint_name(self._queries(source, info), "query")
        k_BTNH = self._keys(latent_BTR, self._rotated(key_rope[:, :, None], info))
        k_BTNH = checkpoint_name(k_BTNH, "key")
        v_BTNU = checkpoint_name(linear(latent_BTR, self.value_up[...]), "value")
        kernel, kind = info.kernels["attention"], info.context_kind
        out_BTNU = context_attention(
            q_BTNH, k_BTNH, v_BTNU, info.mask, None, kernel=kernel, kind=kind, scoring=self._scoring
        )
        return info.leave(linear(out_BTNU, self.out[...], contract=2)), None

    def decoding_state(self, batch_size: int, length: int, dtype: Any) -> StateArray:
        """Keep the latent of every token, (B, S, R + rope_dim), on every device of `tensor`."""
        shape = (batch_size, length, self.config.kv_rank + self.config.rope_dim)
        return StateArray(shape, dtype, P(DECODING_AXES, None, None))

    def decode(
        self, x_BTD: jax.Array, info: SequenceInfo, state: jax.Array, start_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Attend from the newest tokens to all latents that are kept and to their own."""
        config = self.config
        source, latent_BTR, key_rope = self._compress(x_BTD)
        key_rope = self._rotated(key_rope[:, :, None], info)[:, :, 0]
        new = jnp.concatenate([latent_BTR, key_rope], axis=-1)
        latents = written(state, same_everywhere(new), start_B)
        q_nope, q_rope = jnp.split(self._queries(source, info), [config.nope_dim], axis=-1)
        q_latent = jnp.einsum("BTNH,RNH->BTNR", q_nope, self.key_up[...])
        q = jnp.concatenate([q_latent, q_rope], axis=-1)
        keys, mask = latents[:, :, None], kept_mask(info, latents.shape[1])
        values, kernel = keys[..., : config.kv_rank], info.kernels["attention"]
        out_BTNR = attention(q, keys, values, mask, None, kernel, self._scoring)
        out_BTNU = jnp.einsum("BTNR,RNU->BTNU", out_BTNR, self.value_up[...])
        return info.leave(linear(out_BTNU, self.out[...], contract=2)), latents

    def kernel_shapes(self, local: Local) -> dict[str, list[Any]]:
        """Return the one shape of attention on a device."""
        config = self.config
        shape = shape_on_device(
            local,
            num_heads=config.num_heads,
            num_kv_heads=config.num_heads,
            key_size=config.key_dim,
            value_size=config.value_dim,
        )
        return {"attention": [shape]}

    @property
    def _rotation_name(self) -> Hashable:
        return ("rotation", self.config.position, self.config.rope_dim)

    @property
    def _scoring(self) -> Scoring:
        """Return how scores are made, whatever the width of what is multiplied."""
        return Scoring(scale=self.scale)

    def _compress(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return what queries are made from (B, T, query_rank or D), the latent that keys and
        values are made from (B, T, R), and the shared key before it is rotated (B, T, rope_dim).
        """
        source = x_BTD
        if self.config.query_rank is not None:
            source = self.query_norm(linear(x_BTD, self.query_down[...]))
            source = checkpoint_name(source, "query_latent")
        latent_BTR = self.kv_norm(linear(x_BTD, self.kv_down[...]))
        key_rope = linear(x_BTD, self.key_rope[...])
        return (
            source,
            checkpoint_name(latent_BTR, "kv_latent"),
            checkpoint_name(key_rope, "kv_latent"),
        )

    def _queries(self, source: jax.Array, info: SequenceInfo) -> jax.Array:
        """Return queries (B, T, N, H), the last rope_dim numbers of each rotated."""
        config = self.config
        up = self.query if config.query_rank is None else self.query_up
        q_nope, q_rope = jnp.split(linear(source, up[...]), [config.nope_dim], axis=-1)
        return jnp.concatenate([q_nope, self._rotated(q_rope, info)], axis=-1)

    def _keys(self, latent_BTR: jax.Array, rotated: jax.Array) -> jax.Array:
        """Return keys (B, T, N, H): each head's own part, and the shared one (B, T, 1, rope_dim)."""
        k_nope = linear(latent_BTR, self.key_up[...])
        shared = jnp.broadcast_to(rotated, (*k_nope.shape[:3], rotated.shape[-1]))
        return jnp.concatenate([k_nope, shared], axis=-1)

    def _rotated(self, x_BTNP: jax.Array, info: SequenceInfo) -> jax.Array:
        cosines, sines = info.prepared[self._rotation_name]
        return rotate(x_BTNP, cosines, sines, self.config.position.layout)
