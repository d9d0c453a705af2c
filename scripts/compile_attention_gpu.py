"""Compile the GPU attention kernels without a GPU and print what ptxas says of them.

python scripts/compile_attention_gpu.py             # any machine with jax[cuda13]: registers, spills

What they do on a GPU, `scripts/gpu_report` measures.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

sys.path.insert(0, str(Path(__file__).parents[1]))

from maxlm.kernels import hopper, triton_attention
from maxlm.kernels.mask import Mask
from maxlm.kernels.shape import Scoring

KERNELS = {"flash_hopper": hopper, "flash_triton": triton_attention}
# What the compiler wants to know of a GPU; NVIDIA's data sheets and CUDA's table of compute
# capabilities.
GPUS = {
    "H100": {
        "name": "NVIDIA H100 80GB HBM3",
        "arch": "sm_90a",
        "capability": "major: 9 feature_extension: ACCELERATED_FEATURES",
        "cores": 132,
        "fpus": 128,
        "shared_memory": 228,
        "l2": 50,
        "memory": 80,
        "bandwidth": 3.35e12,
        "clock": 1.98,
    },
    "A100": {
        "name": "NVIDIA A100-SXM4-80GB",
        "arch": "sm_80",
        "capability": "major: 8",
        "cores": 108,
        "fpus": 64,
        "shared_memory": 164,
        "l2": 40,
        "memory": 80,
        "bandwidth": 2.04e12,
        "clock": 1.41,
    },
    "L40S": {
        "name": "NVIDIA L40S",
        "arch": "sm_89",
        "capability": "major: 8 minor: 9",
        "cores": 142,
        "fpus": 128,
        "shared_memory": 100,
        "l2": 96,
        "memory": 48,
        "bandwidth": 0.864e12,
        "clock": 2.52,
    },
}
TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ {capability} }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {per_core} shared_memory_per_block_optin: {optin}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth:.0f} l2_cache_size: {l2_bytes} device_memory_size: {memory_bytes}
  name: "{name}" driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
SIZES = ((64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256))
# (kernel, GPU, head sizes of keys and values, other options)
COMPILED = [
    *(("flash_hopper", "H100", sizes, {}) for sizes in SIZES),
    *(("flash_hopper", "H100", sizes, {"softcap": 30.0}) for sizes in SIZES),
    *(("flash_triton", "H100", sizes, {}) for sizes in SIZES),
    ("flash_triton", "H100", (128, 128), {"softcap": 30.0}),
    ("flash_triton", "H100", (128, 128), {"dtype": "float32"}),
    *(
        ("flash_triton", gpu, (size, size), {})
        for gpu in ("A100", "L40S")
        for size in (64, 128, 256)
    ),
]


def target_config(gpu: dict[str, Any]) -> str:
    """Return the text the compiler takes for a GPU that is not here."""
    shared = gpu["shared_memory"] * 1024
    sizes = {
        "per_core": shared,
        "optin": shared - 1024,
        "l2_bytes": gpu["l2"] << 20,
        "memory_bytes": gpu["memory"] << 30,
    }
    return TARGET.format(**gpu, **sizes)


def make_arguments(
    batch: int,
    length: int,
    heads: tuple[int, int],
    sizes: tuple[int, int],
    dtype: str,
    sharding: Any,
) -> tuple[Any, ...]:
    """Return the types of q, k, v, out, lse, d_out and the mask."""
    array = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # noqa: E731
    q, k = (array((batch, length, n, sizes[0]), dtype) for n in heads)
    out, v = (array((batch, length, n, sizes[1]), dtype) for n in heads)
    mask = Mask(*[array((batch, length), "int32")] * 5)
    return q, k, v, out, array((batch, heads[0], length), "float32"), out, mask


def compile_all(kernels: list[str]) -> None:
    """Print a table of registers and spills."""
    print(f"{dt.date.today()}, {versions()}\n")
    print(
        "| kernel | GPU | head size, keys/values | options | forward: registers; spilled; wgmma | dq | dk and dv |"
    )
    print("|---|---|---|---|---|---|---|")
    for kernel, gpu, sizes, options in COMPILED:
        if kernel not in kernels:
            continue
        module, device = KERNELS[kernel], GPUS[gpu]
        described = {
            "platform": "cuda",
            "target_config": target_config(device),
            "topology": "1x1x1",
        }
        sharding = SingleDeviceSharding(topologies.get_topology_desc(**described).devices[0])
        dtype = options.get("dtype", "bfloat16")
        arguments = make_arguments(1, 4096, (16, 4), sizes, dtype, sharding)
        q, k, v, *_, mask = arguments
        scoring = Scoring(softcap=options.get("softcap"))
        keywords = {"scoring": scoring, "device_kind": device["name"]}
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MOSAIC_GPU_DUMP_TO"] = os.environ["MOSAIC_GPU_DUMP_PTX"] = folder
            for function, given in (
                (module.forward, (q, k, v, mask)),
                (module.backward, arguments),
            ):
                traced = jax.jit(functools.partial(function, **keywords)).trace(*given)
                traced.lower().compile(compiler_options={"xla_dump_to": folder})
            passes = dict(assembled(Path(folder), device["arch"]))
        label = ", ".join(f"{key} {value}" for key, value in options.items()) or "none"
        cells = " | ".join(passes[name] for name in ("forward", "d_q", "d_kv"))
        print(f"| {kernel} | {gpu} | {sizes[0]}/{sizes[1]} | {label} | {cells} |", flush=True)


def assembled(folder: Path, arch: str) -> Iterator[tuple[str, str]]:
    """Yield each kernel's pass and what to say of it."""
    for path in folder.glob("*.ptx"):
        text = path.read_text()
        found = re.search(r"\.entry flash_[a-z]+?_(forward|d_q|d_kv)_kernel", text)
        if found is None:
            continue
        command = [find_ptxas(), "-v", f"-arch={arch}", str(path), "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        stores, loads, registers = (
            re.findall(pattern, said)[-1]
            for pattern in (
                r"(\d+) bytes spill stores",
                r"(\d+) bytes spill loads",
                r"Used (\d+) registers",
            )
        )
        spilled = f"{stores}, {loads}" if stores != "0" else "0"
        # ptxas warns where it must wait for each product because registers are touched meanwhile.
        waits = " one by one" if "serialized" in said else ""
        yield found[1], f"{registers}; {spilled}; {text.count('wgmma.mma_async')}{waits}"


def find_ptxas() -> str:
    """Return the assembler of the CUDA wheels, or of the machine."""
    wheels = importlib.util.find_spec("nvidia")
    folders = map(Path, (wheels and wheels.submodule_search_locations) or [])
    found = next(
        (str(path) for folder in folders for path in folder.glob("*/bin/ptxas")),
        shutil.which("ptxas"),
    )
    return found or sys.exit("no ptxas: install jax[cuda13]")


def versions() -> str:
    """Return the versions that a table is about."""
    names = ("jax", "nvidia-cuda-nvcc", "nvidia-cudnn-cu13", "torch")
    installed = {x.metadata["Name"]: x.version for x in importlib.metadata.distributions()}
    return ", ".join(f"{name} {installed[name]}" for name in names if name in installed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), help="to compile"
    )
    arguments = parser.parse_args()
    compile_all(arguments.kernels)


if __name__ == "__main__":
    main()
