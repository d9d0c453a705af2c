"""Attention: its table of kernels, and the one custom gradient around a kernel's pair."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maxlm.kernels import chunked_attention
from maxlm.kernels.mask import Mask
from maxlm.kernels.shape import PLAIN, Scoring
from maxlm.ops.kernel_choice import Operation, Row
from maxlm.products import einsum_fp32

Partial = tuple[jax.Array, Any]
"""Attention to some of the keys: out (B, T, N, H_v) and fp32 lse (B, N, T).

A library's kernel, which attends to whole sequences only, has in place of lse a tuple of what its
backward pass wants.
"""
Gradients = tuple[jax.Array, ...]


class Pair(Protocol):
    """`forward(q, k, v, mask, scoring=) -> (out, lse)` and
    `backward(q, k, v, out, lse, d_out, mask, scoring=) -> (dq, dk, dv)`, with a table (dq, dk, dv,
    d_table).

    The out and lse given to `backward` may be of a larger softmax, of which these keys are a part.
    """

    @property
    def forward(self) -> Callable[..., Partial]:
        """Attend."""

    @property
    def backward(self) -> Callable[..., Gradients]:
        """Take the gradient."""


class Kernel(NamedTuple):
    """A pair for tokens that lie one after the other on one device."""

    forward: Callable[..., Partial]
    backward: Callable[..., Gradients]


CHUNKED = Kernel(chunked_attention.forward, chunked_attention.backward)
"""The reference: runs everywhere and does everything."""


def _loaded(name: str) -> Any:
    """Return a module of kernels. It is imported when it is asked for: Pallas with all of its
    backends takes most of a second, of which each platform needs a part and a CPU nothing.
    """
    return importlib.import_module(f"maxlm.kernels.{name}")


def _tuned(platforms: tuple[str, ...], name: str, **options: Any) -> Row:
    """Return the row of a module whose pair chooses block sizes by device kind."""

    def build(device_kind: str) -> Kernel:
        module = _loaded(name)
        pair = (
            functools.partial(f, device_kind=device_kind, **options)
            for f in (module.forward, module.backward)
        )
        return Kernel(*pair)

    return Row(platforms, lambda shape: _loaded(name).unsupported(shape), build)


def _as_it_comes(platforms: tuple[str, ...], name: str) -> Row:
    """Return the row of a library's kernel, which chooses for itself what it depends on."""

    def unsupported(shape: Any) -> str | None:
        why: str | None = getattr(_loaded("external_attention"), f"{name}_unsupported")(shape)
        return why

    def build(_: str) -> Kernel:
        library = getattr(_loaded("external_attention"), name.upper())
        return Kernel(library.forward, library.backward)

    return Row(platforms, unsupported, build)


ATTENTION = Operation(
    "attention",
    table={
        "flash_tpu": _tuned(("tpu",), "tpu_attention"),
        "flash_hopper": _tuned(("gpu",), "hopper"),
        "flash_triton": _tuned(("gpu",), "triton_attention"),
        "splash": _as_it_comes(("tpu",), "splash"),
        "cudnn": _as_it_comes(("gpu",), "cudnn"),
        "tokamax": _as_it_comes(("gpu",), "tokamax"),
        "chunked": Row(("cpu", "gpu", "tpu"), lambda _: None, lambda _: CHUNKED),
        "interpret": _tuned(("cpu",), "tpu_attention", interpret=True),
    },
    order={
        "cpu": ("chunked",),
        "gpu": ("flash_hopper", "flash_triton", "chunked"),
        "tpu": ("flash_tpu", "chunked"),
    },
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    sink_N: jax.Array | None,
    implementation: Pair,
    scoring: Scoring = PLAIN,
) -> jax.Array:
    """Compute softmax(scores) v over the keys that the mask lets each query see; (B, T, N, H_v).

    With `sink_N`, each head's softmax has one more key, of that score and of value zero: what it
    takes is attention to nothing (arXiv:2309.17453).
    """
    return _attend(q_BTNH, k_BSKH, v_BSKH, mask, sink_N, implementation, scoring)[0]


def _attend(q, k, v, mask, sink_N, implementation, scoring):  # type: ignore[no-untyped-def]
    out, lse_BNT = implementation.forward(q, k, v, mask, scoring=scoring)
    if sink_N is None:
        return out, lse_BNT
    nothing = (
        jnp.zeros_like(out),
        jnp.broadcast_to(sink_N[:, None], lse_BNT.shape).astype(jnp.float32),
    )
    merged, lse_BNT = merge_partial((out, lse_BNT), nothing)
    return merged.astype(out.dtype), lse_BNT


def _attention_forward(q, k, v, mask, sink_N, implementation, scoring):  # type: ignore[no-untyped-def]
    out, lse = _attend(q, k, v, mask, sink_N, implementation, scoring)
    # Named, so that remat can keep them: without lse the backward pass would run the forward kernel
    # again.
    out, lse = (
        checkpoint_name(out, "attention_out"),
        jax.tree.map(lambda x: checkpoint_name(x, "attention_lse"), lse),
    )
    return out, (q, k, v, mask, sink_N, scoring, out, lse)


def _attention_backward(implementation, saved, d_out):  # type: ignore[no-untyped-def]
    q, k, v, mask, sink_N, scoring, out, lse_BNT = saved
    d_q, d_k, d_v, *d_table = implementation.backward(
        q, k, v, out, lse_BNT, d_out, mask, scoring=scoring
    )
    d_scoring = jax.tree.map(jnp.zeros_like, scoring)
    if d_table:
        d_table_NX = d_table[0].astype(scoring.table_NX.dtype)
        d_scoring = dataclasses.replace(d_scoring, table_NX=d_table_NX)
    if sink_N is None:
        return d_q, d_k, d_v, None, None, d_scoring
    # ds = p (do v^T - rowsum(do * out)) as for every key, and this one's v is zero.
    delta_BNT = einsum_fp32("BTNH,BTNH->BNT", d_out, out)
    d_sink_N = -jnp.sum(jnp.exp(sink_N[:, None] - lse_BNT) * delta_BNT, axis=(0, 2))
    return d_q, d_k, d_v, None, d_sink_N.astype(sink_N.dtype), d_scoring


attention.defvjp(_attention_forward, _attention_backward)


def merge_partial(one: Partial, other: Partial) -> Partial:
    """Return attention, in fp32, to two disjoint sets of keys together, given attention to each."""
    lse_BNT = jnp.logaddexp(one[1], other[1])
    scaled = [jnp.exp(lse - lse_BNT).swapaxes(1, 2)[..., None] * out for out, lse in (one, other)]
    return scaled[0] + scaled[1], lse_BNT
