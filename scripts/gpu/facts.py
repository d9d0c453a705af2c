"""What the GPU is, and what it reaches: matrix products and copies of memory."""

from __future__ import annotations

import importlib.metadata
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

QUERY = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
PACKAGES = (
    "jax", "jaxlib", "flax", "jax-cuda13-plugin", "nvidia-cuda-nvcc", "nvidia-cudnn-cu13", "nvidia-cublas", "torch",
    "triton", "flash-attn-3", "tokamax",
)  # fmt: skip
SECONDS = 0.15
"""How long a measurement takes at least."""
TURNS = 5


def measure(*, tiny: bool) -> dict[str, Any]:
    """Return the machine's description, TFLOP/s of products and GB/s of a copy."""
    device = jax.devices()[0]
    installed = {x.metadata["Name"]: x.version for x in importlib.metadata.distributions()}
    size = 256 if tiny else 8192
    products = {}
    for dtype in ("bfloat16", "float32", "float8_e4m3fn"):
        if tiny and dtype == "float8_e4m3fn":
            continue
        x, y = (jax.random.normal(key, (size, size)).astype(dtype) for key in _keys(2))
        out = "float32" if dtype == "float32" else "bfloat16"
        multiply = jax.jit(lambda x, y, out=out: jnp.matmul(x, y.T, preferred_element_type=out))
        seconds = median_seconds(lambda: multiply(x, y))  # noqa: B023
        products[dtype] = 2 * size**3 / seconds / 1e12
    numbers = jax.random.normal(jax.random.key(0), (size * size * (1 if tiny else 8),))
    scale = jax.jit(lambda x: x * 2)
    copied = 2 * numbers.nbytes / median_seconds(lambda: scale(numbers)) / 1e9
    return {
        "device": device.device_kind,
        "nvidia-smi": _ask_driver(),
        "versions": {name: installed[name] for name in PACKAGES if name in installed},
        "matmul_tflops": products,
        "copy_gb_per_second": copied,
        "memory_limit_bytes": (device.memory_stats() or {}).get("bytes_limit"),
    }


def _keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), count)


def _ask_driver() -> dict[str, str]:
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return (
        dict(
            zip(
                QUERY.split(","), (x.strip() for x in said.splitlines()[0].split(",")), strict=False
            )
        )
        if said
        else {}
    )


def median_seconds(
    call: Callable[[], Any], wait: Callable[[Any], Any] = jax.block_until_ready
) -> float:
    """Return the seconds of one call, the median over several bursts."""
    return statistics.median(burst(call, wait) for _ in range(TURNS))


def burst(call: Callable[[], Any], wait: Callable[[Any], Any] = jax.block_until_ready) -> float:
    """Return the seconds of one call: of as many at once as take a while, after one to warm up."""
    wait(call())
    start = time.perf_counter()
    wait(call())
    repeats = max(2, min(200, int(SECONDS / TURNS / max(time.perf_counter() - start, 1e-6))))
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
    wait(result)
    return (time.perf_counter() - start) / repeats
