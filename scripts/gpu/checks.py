"""Attention kernels on the device, values and gradients, against attention in fp64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.kernels import chunked_attention, hopper, triton_attention
from maxlm.kernels.mask import NOTHING_SEEN, Mask
from maxlm.kernels.shape import Scoring
from tests.kernels.oracle import MASKS, attention_fp64, make_inputs, make_scoring

Alone = Callable[[], AbstractContextManager[None]]
"""Holds the GPU."""
NAMES = ("out", "lse", "dq", "dk", "dv")
MODULES: dict[str, Any] = {"flash_hopper": hopper, "flash_triton": triton_attention}
ALLOWED = 1.25
"""Times the distance from fp64 of the plain computation, in the same type on the same device."""


def check(*, kernel: str, options: dict[str, Any], alone: Alone, tiny: bool) -> dict[str, Any]:
    """Return how far from fp64 each result is, in distances of the plain computation, and whether
    two runs gave the same bits.
    """
    arrays, scoring = make(options, tiny=tiny)
    q, k, v, d_out, mask = arrays
    module = chunked_attention if tiny and kernel == "flash_hopper" else MODULES[kernel]
    keywords: dict[str, Any] = {"scoring": scoring}
    if module is not chunked_attention:
        keywords |= {"device_kind": _device_kind(tiny=tiny)}
    if tiny and kernel == "flash_triton":
        keywords |= {"interpret": True}
    ours, reference = (
        compiled(*x, arrays)
        for x in ((module, keywords), (chunked_attention, {"scoring": scoring}))
    )
    with alone():
        got, again = (run(ours, arrays) for _ in range(2))
        plain = run(reference, arrays)
    exact = attention_fp64(q, k, v, d_out, mask, scoring)
    found = {}
    for name, x, y, z in zip(NAMES, got, plain, exact, strict=False):
        nothing = z == NOTHING_SEEN
        same_rows = bool(np.array_equal(np.asarray(x) == np.float32(NOTHING_SEEN), nothing))
        error, plain_error = (
            float(np.sqrt(np.mean(np.square(np.where(nothing, 0, np.asarray(w, np.float64) - z)))))
            for w in (x, y)
        )
        good = same_rows and error <= ALLOWED * plain_error + 1e-6
        found[name] = {"error": error, "plain": plain_error, "good": good}
    same_bits = all(np.array_equal(x, y, equal_nan=True) for x, y in zip(got, again, strict=True))
    return {
        "results": found,
        "same_bits": same_bits,
        "good": all(x["good"] for x in found.values()),
    }


def make(options: dict[str, Any], *, tiny: bool) -> tuple[tuple[Any, ...], Scoring]:
    """Return q, k, v, d_out and the mask, and how scores are made."""
    options = {
        "batch": 2,
        "heads": 2,
        "kv_heads": 2,
        "head_dim": 128,
        "documents": 1,
        "of_none": 0,
        **options,
    }
    scores = {name: options.pop(name, None) for name in ("softcap", "scale", "by_distance")}
    every_mask = options.pop("masks", False)
    if tiny:
        options["length"] = min(options["length"], 40)
        options["head_dim"] = min(options["head_dim"], 16)
    if every_mask:
        options["batch"] = len(MASKS)
    dtype = jnp.dtype(options.pop("dtype", "bfloat16"))
    *arrays, mask = make_inputs(0, dtype=dtype, **options)
    if every_mask:
        rng = np.random.default_rng(0)
        rows = [build(rng, (1, options["length"])) for build in MASKS.values()]
        mask = Mask.of(
            *(jnp.concatenate(x) for x in ([x.queries for x in rows], [x.keys for x in rows]))
        )
    return (*arrays, mask), make_scoring(options["heads"], **scores)


def compiled(module: Any, keywords: dict[str, Any], arrays: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return the forward and the backward pass."""
    q, k, v, d_out, mask = arrays
    # Without the option XLA leaves out roundings to bf16.
    jit = functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
    forward, backward = (
        jit(functools.partial(x, **keywords)) for x in (module.forward, module.backward)
    )
    out, lse = jax.eval_shape(forward, q, k, v, mask)
    return (
        forward.lower(q, k, v, mask).compile(),
        backward.lower(q, k, v, out, lse, d_out, mask).compile(),
    )


def run(passes: tuple[Any, Any], arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return out, lse and gradients."""
    q, k, v, d_out, mask = arrays
    out, lse = passes[0](q, k, v, mask)
    return tuple(jax.device_get(x) for x in (out, lse, *passes[1](q, k, v, out, lse, d_out, mask)))


def _device_kind(*, tiny: bool) -> str:
    return "NVIDIA H100 80GB HBM3" if tiny else jax.devices()[0].device_kind
