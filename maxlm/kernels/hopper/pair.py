"""The two passes of Hopper's attention as functions of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from maxlm.devices import find_gpu
from maxlm.jax_versions import vary_over, varying_axes
from maxlm.kernels.hopper.backward_kernels import d_kv_apart_kernel, gradient_kernel
from maxlm.kernels.hopper.forward_kernel import forward_kernel
from maxlm.kernels.hopper.problem import (
    COMPUTING,
    LOG2_E,
    ROWS,
    SIZE_STEP,
    TILE_ROWS,
    Problem,
    matrices,
)
from maxlm.kernels.mask import Mask, words
from maxlm.kernels.shape import DISTANCE_SETTINGS, PLAIN, AttentionShape, Scoring

HOPPER = 9.0
"""Compute capability: the instructions are of this generation alone."""
MAX_HEAD_SIZE = 256
_TILE = COMPUTING * ROWS


def unsupported(shape: AttentionShape) -> str | None:
    """Return why these kernels cannot do it, or None."""
    gpu = find_gpu(shape.device_kind)
    if gpu is None or gpu.capability != HOPPER:
        return f"needs a Hopper GPU, not {shape.device_kind}; flash_triton runs from Ampere on"
    if shape.dtype != "bfloat16":
        able = "flash_triton" if shape.dtype == "float32" else "chunked"
        return f"multiplies bfloat16, not {shape.dtype}; {able} takes that"
    if max(shape.key_size, shape.value_size) > MAX_HEAD_SIZE:
        sizes = f"{shape.key_size} (keys), {shape.value_size} (values)"
        return f"has head sizes up to {MAX_HEAD_SIZE}, not {sizes}; chunked has all"
    if shape.by_distance:
        return f"adds nothing to scores by distance, {DISTANCE_SETTINGS[shape.by_distance]}"
    return None


def forward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring = PLAIN,
    device_kind: str = "NVIDIA H100 80GB HBM3",
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Compute softmax(scores) v; see `chunked_attention.forward`.

    Args:
      q_BTNH: queries, bf16; N is a multiple of K.
      k_BSKH: keys.
      v_BSKH: values; their head size may differ from the keys'.
      mask: who sees whom.
      scoring: how scores are made.
      device_kind: one of Hopper's; they differ in nothing that matters here.
      interpret: parameters of Pallas' simulated GPU.

    Returns:
      out (B, T, N, H_v) in bf16 and lse (B, N, T) fp32.
    """
    del device_kind
    problem = Problem.of(q_BTNH, k_BSKH, v_BSKH, scoring, "forward")
    q, k, v = map(_fill_up, (q_BTNH, k_BSKH, v_BSKH))
    batch, length, num_heads, _ = q.shape
    scratch = {
        "q_tile": problem.matrices(COMPUTING, ROWS, problem.key_size),
        "lse_tile": plgpu.SMEM((COMPUTING, ROWS), jnp.float32),
        "tile_ready": plgpu.Barrier(num_barriers=COMPUTING),
        **problem.rings(),
        "turn": plgpu.Barrier(num_arrivals=COMPUTING),
    }
    inputs = *words(mask, _TILE, _TILE), q, k, v
    outputs = (
        jax.ShapeDtypeStruct((batch, length, num_heads, problem.value_size), q.dtype),
        jax.ShapeDtypeStruct((batch, num_heads, length + -length % _TILE), jnp.float32),
    )
    out, lse = _call(forward_kernel, problem, mask, inputs, outputs, scratch, interpret)
    length = q_BTNH.shape[1]
    return out[:, :length, :, : v_BSKH.shape[3]], lse[:, :, :length]


def backward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    out_BTNH: jax.Array,
    lse_BNT: jax.Array,
    d_out_BTNH: jax.Array,
    mask: Mask,
    *,
    scoring: Scoring = PLAIN,
    device_kind: str = "NVIDIA H100 80GB HBM3",
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the gradients of q, k and v; formulas in `chunked_attention.backward`.

    `out` and `lse` may be of a larger softmax than this call's keys (ring attention).
    """
    del device_kind
    delta_BTN = jnp.sum(d_out_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32), axis=3)
    missing = -q_BTNH.shape[1] % _TILE
    lse, delta = (
        jnp.pad(x, ((0, 0), (0, 0), (0, missing))) for x in (lse_BNT * LOG2_E, delta_BTN.mT)
    )
    inputs = (
        *words(mask, _TILE, _TILE),
        *map(_fill_up, (q_BTNH, k_BSKH, v_BSKH, d_out_BTNH)),
        lse,
        delta,
    )
    gradients: tuple[jax.Array, ...] = ()
    for kernel, like in (("d_q", inputs[2:3]), ("d_kv", inputs[3:5])):
        problem = Problem.of(q_BTNH, k_BSKH, v_BSKH, scoring, kernel)
        scratch = problem.tiles() | problem.rings()
        if problem.apart:
            scratch["p_tile"] = matrices(1, ROWS, 32, problem.block, jnp.float32)
            scratch |= {"p_ready": plgpu.Barrier(), "p_taken": plgpu.Barrier()}
        body = d_kv_apart_kernel if problem.apart else gradient_kernel
        outputs = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like)
        gradients += _call(body, problem, mask, inputs, outputs, scratch, interpret)
    d_q, d_k, d_v = (
        x[:, : y.shape[1], :, : y.shape[3]]
        for x, y in zip(gradients, (q_BTNH, k_BSKH, v_BSKH), strict=True)
    )
    return d_q, d_k, d_v


def _call(
    kernel: Callable[..., None],
    problem: Problem,
    mask: Mask,
    inputs: Sequence[jax.Array],
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    scratch: dict[str, Any],
    interpret: Any,
) -> tuple[jax.Array, ...]:
    """Run a kernel on every head and batch row of its first output, and every block of its tokens."""
    arrays = (problem.table(mask), *inputs)
    axes = varying_axes(*arrays)
    call = plgpu.kernel(
        lambda *references, **shared: kernel(problem, *references, SimpleNamespace(**shared)),
        out_type=outputs,
        scratch_types=scratch,
        grid=(outputs[0].shape[2], arrays[0].shape[1], outputs[0].shape[0]),
        grid_names=("head", "block", "batch"),
        num_threads=COMPUTING + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
        kernel_name=f"flash_hopper_{problem.kernel}_kernel",
    )
    # Mosaic GPU's results claim to vary over nothing.
    return tuple(vary_over(x, axes) for x in call(*(vary_over(x, axes) for x in arrays)))


def _fill_up(x_BTNH: jax.Array) -> jax.Array:
    """Fill sequences and heads up to what TMA and the kernels take; zeros add nothing to any product."""
    missing = -x_BTNH.shape[1] % TILE_ROWS, -x_BTNH.shape[3] % SIZE_STEP
    return jnp.pad(x_BTNH, ((0, 0), (0, missing[0]), (0, 0), (0, missing[1])))
