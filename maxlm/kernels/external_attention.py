"""Attention kernels of other libraries, as they come: JAX's splash attention, cuDNN's, and those of
tokamax.

They are differentiable functions of a whole sequence. As a pair (`maxlm.ops.attention`), the
forward pass returns in place of the log-sum-exp whatever the library's own backward pass wants, so
that nothing is computed twice. It follows that their results cannot be merged with attention to
other keys: no sinks, no ring.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from maxlm.devices import find_gpu
from maxlm.jax_versions import call_on_each_device
from maxlm.kernels.mask import Mask, fill_blocks, sees
from maxlm.kernels.shape import DISTANCE_SETTINGS, PLAIN, AttentionShape, Scoring

SPLASH_BLOCK = 512
SPLASH_RESULTS = "splash_results"
LANES = 128
CUDNN_LARGE_HEADS = (9.0, 10.0)
"""Compute capabilities of which cuDNN has head sizes above 128."""
CUDNN_CALLS = tuple(
    f"__cudnn$fmha{kind}{way}"
    for kind in ("Softmax", "ScaleBiasSoftmax")
    for way in ("", "Backward")
)


class Library(NamedTuple):
    """A library's attention, with the two functions of every kernel.

    Attributes:
      attend: (q, k, v, mask, scoring) -> out, differentiable in q, k and v. Rows that see nothing
        may be anything finite.
      platform: what it is compiled for: cpu, cuda or tpu.
      keep: policy of `jax.checkpoint`: what the backward pass gets from the forward pass; it
        computes the rest again.
      custom_calls: calls in it that `jax.export` does not take for granted.
    """

    attend: Callable[..., jax.Array]
    platform: str
    keep: Callable[..., bool]
    custom_calls: tuple[str, ...] = ()

    def forward(
        self,
        q_BTNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        mask: Mask,
        *,
        scoring: Scoring = PLAIN,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Compute softmax(scores) v, and what `backward` wants."""

        def program(*given: Any) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            out, pullback = self._differentiate(*given, scoring=scoring)
            return out, tuple(x for x in jax.tree.leaves(pullback) if not _is_one_of(x, given))

        out, kept = self._call(program, q_BTNH, k_BSKH, v_BSKH, mask)
        return jnp.where(_seen(mask).any(axis=2)[:, :, None, None], out, 0), kept

    def backward(
        self,
        q_BTNH: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        out_BTNH: jax.Array,
        kept: tuple[jax.Array, ...],
        d_out_BTNH: jax.Array,
        mask: Mask,
        *,
        scoring: Scoring = PLAIN,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Compute the gradients of q, k and v from what `forward` kept."""

        def program(kept: tuple[jax.Array, ...], d_out: jax.Array, *given: Any) -> Any:
            # Traced for the backward pass in it. With its arrays replaced, the forward pass in it
            # is dead code.
            leaves, structure = jax.tree.flatten(self._differentiate(*given, scoring=scoring)[1])
            left = iter(kept)
            leaves = [x if _is_one_of(x, given) else next(left) for x in leaves]
            return jax.tree.unflatten(structure, leaves)(d_out)

        d_out = jnp.where(_seen(mask).any(axis=2)[:, :, None, None], d_out_BTNH, 0).astype(
            out_BTNH.dtype
        )
        d_q, d_k, d_v = self._call(program, kept, d_out, q_BTNH, k_BSKH, v_BSKH, mask)
        return d_q, d_k, d_v

    def _differentiate(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, *, scoring: Scoring
    ) -> Any:
        """Return what the library computes, and its backward pass as a function that is a tree of
        arrays.
        """
        attend = jax.checkpoint(
            lambda q, k, v: self.attend(q, k, v, mask, scoring), policy=self.keep
        )
        return jax.vjp(attend, q, k, v)

    def _call(self, program: Callable[..., Any], *arrays: Any) -> Any:
        return call_on_each_device(
            program, *arrays, platform=self.platform, custom_calls=self.custom_calls
        )


def _is_one_of(x: Any, arrays: Any) -> bool:
    return any(x is y for y in jax.tree.leaves(arrays))


def _seen(mask: Mask) -> jax.Array:
    """Return bool (B, T, S): who sees whom."""
    mask = dataclasses.replace(fill_blocks(mask, 1, 1), q_least_BT=None)
    return sees(
        *jnp.unstack(mask.queries[..., None], axis=1), *jnp.unstack(mask.keys[:, :, None], axis=1)
    )


def unsupported(shape: AttentionShape) -> str | None:
    """Return why none of these libraries can do this, or None."""
    if shape.dtype != "bfloat16":
        return f"multiplies bfloat16; of {shape.dtype} it would lose bits"
    if shape.spread:
        return "attends to whole sequences: with mesh.context above 1 it needs mesh.context_kind=ulysses"
    if shape.sinks:
        return "has no sinks"
    if shape.by_distance:
        return f"adds nothing to scores by distance, {DISTANCE_SETTINGS[shape.by_distance]}"
    return None


def splash_unsupported(shape: AttentionShape) -> str | None:
    """Return why splash attention cannot do this, or None."""
    if not shape.causal:
        return (
            "compiles the mask in, and knows causal ones with or without a window; this one is data"
        )
    return unsupported(shape)


def attend_with_splash(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    scoring: Scoring,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Attend with JAX's splash attention: causality and window are compiled in, documents are its
    segments.
    """
    length, num_heads, size = q_BTNH.shape[1:]
    block = min(SPLASH_BLOCK, _up_to(length, LANES))
    filled = _up_to(length, block)
    if mask.reach is None:
        raise ValueError(
            "splash attention compiles causality and window in: it takes the masks of `mask.causal`"
        )
    reach = min(mask.reach, filled)
    kernel = _splash_kernel(filled, block, num_heads, reach, scoring.softcap, interpret)

    def fill(x_BT: jax.Array) -> jax.Array:
        return jnp.pad(
            x_BT, [(0, filled - length if axis == 1 else 0) for axis in range(x_BT.ndim)]
        )

    q, k, v = (fill(x).swapaxes(1, 2) for x in (q_BTNH * scoring.scale_of(size), k_BTKH, v_BTKH))
    segments = splash.SegmentIds(fill(mask.q_segments_BT), fill(mask.kv_segments_BS))
    return jax.vmap(kernel)(q, k, v, segments).swapaxes(1, 2)[:, :length]


@functools.lru_cache(maxsize=16)
def _splash_kernel(
    length: int, block: int, num_heads: int, window: int, softcap: float | None, interpret: bool
) -> Any:
    """Build the kernel, once for all layers and passes: its tables of blocks take 94 s for 131,072
    tokens.
    """
    visible = splash_mask.LocalMask(
        (length, length), (window - 1 if window < length else None, 0), 0
    )
    with jax.ensure_compile_time_eval():  # tables, not parts of a program that is being traced
        return splash.make_splash_mha(
            splash_mask.MultiHeadMask([visible] * num_heads),
            block_sizes=splash.BlockSizes(
                block_q=block, block_kv=block, block_kv_compute=block,
                block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, use_fused_bwd_kernel=True,
            ),
            attn_logits_soft_cap=softcap,
            residual_checkpoint_name=SPLASH_RESULTS,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )  # fmt: skip


def cudnn_unsupported(shape: AttentionShape) -> str | None:
    """Return why cuDNN, as JAX offers it, cannot do this, or None."""
    if shape.key_size != shape.value_size:
        return f"has keys and values of one head size, not {shape.key_size} and {shape.value_size}"
    if shape.softcap is not None:
        return "has no softcap"
    gpu = find_gpu(shape.device_kind)
    largest = 256 if gpu and gpu.capability in CUDNN_LARGE_HEADS else 128
    if shape.key_size > largest or shape.key_size % 8:
        return f"has head sizes that are multiples of 8, to {largest}, not {shape.key_size}"
    if shape.query_length % 2:
        return f"has sequences of even length, not {shape.query_length}"
    return unsupported(shape)


def attend_with_cudnn(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    scoring: Scoring,
    *,
    implementation: Any = "cudnn",
) -> jax.Array:
    """Attend with cuDNN through `jax.nn`.

    Of masks it knows causality and window: all else is T x T elements.
    """
    assert scoring.softcap is None
    return jax.nn.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, implementation=implementation, scale=scoring.scale_of(q_BTNH.shape[3]),
        **_dense_mask(mask, q_BTNH.shape[1]),
    )  # fmt: skip


def tokamax_unsupported(shape: AttentionShape) -> str | None:
    """Return why tokamax cannot do this, or None."""
    if importlib.util.find_spec("tokamax") is None:
        return "needs a library that is not installed (scripts/setup tokamax)"
    return unsupported(shape)


def attend_with_tokamax(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    scoring: Scoring,
    *,
    implementation: Any = ("mosaic", "triton"),
) -> jax.Array:
    """Attend with the first of tokamax' kernels that can, never with its plain XLA; masks as for
    cuDNN.
    """
    # An extra, slow to import.
    flags, tokamax = (importlib.import_module(name) for name in ("absl.flags", "tokamax"))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["maxlm"])  # or it would take our command line for its own
    out: jax.Array = tokamax.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, logits_soft_cap=scoring.softcap, implementation=implementation,
        scale=scoring.scale_of(q_BTNH.shape[3]),
        **_dense_mask(mask, q_BTNH.shape[1]),
    )  # fmt: skip
    return out


def _dense_mask(mask: Mask, length: int) -> dict[str, Any]:
    """Return the arguments with which `jax.nn.dot_product_attention`'s like is told who sees whom.

    The mask says it all; that none sees what is later, or far back, is repeated for kernels that
    skip by it alone.
    """
    seen = _seen(mask)
    # A row that sees nothing sees everything, to be finite; it is thrown away.
    arguments: dict[str, Any] = {"mask": (seen | ~seen.any(axis=2, keepdims=True))[:, None]}
    if mask.reach is not None:
        arguments["is_causal"] = True
        arguments["local_window_size"] = (mask.reach - 1, 0) if mask.reach < length else None
    return arguments


def _up_to(length: int, unit: int) -> int:
    return -(-length // unit) * unit


def results_of(*primitives: str) -> Callable[..., bool]:
    """Return the policy that keeps what these primitives return."""
    return lambda primitive, *_, **__: primitive.name in primitives


KEEP_SPLASH = jax.checkpoint_policies.save_only_these_names(SPLASH_RESULTS)
SPLASH = Library(attend_with_splash, "tpu", KEEP_SPLASH)
CUDNN = Library(
    attend_with_cudnn, "cuda", results_of("dot_product_attention_fwd_wrapper"), CUDNN_CALLS
)
TOKAMAX = Library(attend_with_tokamax, "cuda", results_of("pallas_call", "custom_vmap_call"))
