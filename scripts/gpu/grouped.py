"""TFLOP/s of experts' products: rows by group, each group with its own matrix."""

from __future__ import annotations

import functools
import importlib
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.ops import grouped_matmul
from scripts.gpu.checks import Alone
from scripts.gpu.facts import TURNS, burst

MOSAIC = "jax.experimental.pallas.ops.gpu"
MOST_ERROR = 0.01
"""Distance from fp32, of its root mean square; rounding results to bfloat16 is 0.002."""


class Products(NamedTuple):
    """Functions of x (R, D), w (E, D, F), gradients g (R, F) and sizes (E,).

    Attributes:
      forward: (x, w, sizes) -> (R, F).
      rows: the gradient of the rows, (g, w, sizes) -> (R, D).
      matrices: the gradient of the matrices, (x, g, sizes) -> (E, D, F).
    """

    forward: Callable[..., jax.Array]
    rows: Callable[..., jax.Array]
    matrices: Callable[..., jax.Array]


def compare(
    *, rows: int, dim: int, hidden: int, experts: int, way: str, given: dict[str, int], alone: Alone,
    tiny: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return the TFLOP/s of a way to compute the three products, and how far they are from fp32.

    Args:
      rows: R, unevenly shared by the groups.
      dim: D.
      hidden: F.
      experts: E.
      way: a key of `WAYS`.
      given: its blocks.
      alone: holds the GPU.
      tiny: for a CPU.
    """
    if tiny:
        rows, dim, hidden, experts = 96, 16, 24, 4
        given = dict.fromkeys(given, 16)
        way, given = ("xla", {}) if way == "mosaic" else (way, given)
    shares = np.random.default_rng(0).dirichlet(np.full(experts, 30.0))
    ends = np.rint(np.cumsum(shares) * rows).astype(np.int32)
    sizes = jnp.asarray(np.diff(ends, prepend=0))
    keys, shapes = (
        jax.random.split(jax.random.key(0), 3),
        ((rows, dim), (experts, dim, hidden), (rows, hidden)),
    )
    x, w, g = (
        jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)
    )
    arguments = {"forward": (x, w, sizes), "rows": (g, w, sizes), "matrices": (x, g, sizes)}
    products = WAYS[way](**given)
    exact = WAYS["dense" if way == "dense" else "loop"]()
    speeds, errors = {}, {}
    for name, operands in arguments.items():
        call = jax.jit(getattr(products, name)).lower(*operands).compile()
        wide = [a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a for a in operands]
        with jax.default_matmul_precision("highest"):
            want = jax.jit(getattr(exact, name))(*wide)
        away = call(*operands).astype(jnp.float32) - want
        errors[name] = float(jnp.sqrt((away**2).mean() / (want**2).mean()))
        del want, away
        with alone():
            seconds = statistics.median(
                burst(functools.partial(call, *operands)) for _ in range(1 if tiny else TURNS)
            )
        speeds[name] = 2 * rows * dim * hidden / seconds / 1e12
    return {"tflops": speeds, "errors": errors, "good": max(errors.values()) < MOST_ERROR}


def _loop(*, tile_rows: int = grouped_matmul.GPU_TILE_ROWS) -> Products:
    """Ours, as a GPU runs it."""
    tiled = functools.partial(grouped_matmul.tiled, tile_rows=tile_rows)
    return Products(
        tiled,
        functools.partial(tiled, turned=True),
        functools.partial(grouped_matmul.tiled_transpose, tile_rows=tile_rows),
    )


def _xla() -> Products:
    """The instruction, which is a dense product for each expert where there is no kernel for it."""
    return Products(
        grouped_matmul.ragged, grouped_matmul.ragged_turned, grouped_matmul.ragged_transpose
    )


def _mosaic(*, block_m: int, block_n: int, block_k: int) -> Products:
    """The kernels for Hopper that come with jax."""
    plain = importlib.import_module(f"{MOSAIC}.ragged_dot_mgpu").ragged_dot
    transposed = importlib.import_module(f"{MOSAIC}.transposed_ragged_dot_mgpu")
    blocks = {"block_m": block_m, "block_n": block_n, "block_k": block_k}
    blocks |= {"max_concurrent_steps": 4, "grid_block_n": 8}

    def forward(x: jax.Array, w: jax.Array, sizes: jax.Array, **more: bool) -> jax.Array:
        return plain(x, w, group_sizes=sizes, **blocks, **more)

    def matrices(x: jax.Array, g: jax.Array, sizes: jax.Array) -> jax.Array:
        return transposed.transposed_ragged_dot(x, g, group_sizes=sizes, **blocks)

    return Products(forward, functools.partial(forward, transpose_rhs=True), matrices)


def _dense() -> Products:
    """As many FLOPs with one matrix: what there is to reach."""
    return Products(
        lambda x, w, _: x @ w[0],
        lambda g, w, _: g @ w[0].T,
        lambda x, g, _: x.T @ g,
    )


WAYS: dict[str, Callable[..., Products]] = {
    "loop": _loop,
    "xla": _xla,
    "mosaic": _mosaic,
    "dense": _dense,
}
