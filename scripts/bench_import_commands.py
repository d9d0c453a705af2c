"""Measure how long `maxlm import` and `maxlm export` take, and what they take of the memory.

    .venv/bin/python scripts/bench_import_commands.py [--gigabytes 1] [--folder FOLDER]

Makes a folder of published weights in bf16, a Qwen2 with random numbers, imports it, exports what
came of it in bf16, and compares the tensors bit for bit.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from bench_import import CONFIG, LAYER, write_sparse
from safetensors import safe_open

SHARD_BYTES = 400 * 10**6
NARROW = {**LAYER, "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    of_layer = 2 * 1024 * (4 * 1024 + 3 * 2816)
    layers = round(arguments.gigabytes * 1e9 / of_layer)
    config = {**CONFIG, **NARROW, "num_hidden_layers": layers, "use_sliding_window": False}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source, imported, out = (Path(name) / part for part in ("source", "imported", "out"))
        source.mkdir()
        files = write_sparse(source, config, SHARD_BYTES)
        fill(source)
        size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        print(f"{size / 1e9:.2f} GB of bf16 in {files} files, {layers} layers")
        measure("import", [str(source), str(imported)])
        measure("export", [str(imported), str(out), "--dtype", "bfloat16"])
        print("the same bit for bit" if same(source, out) else "they DIFFER")


def fill(folder: Path) -> None:
    """Write random numbers into the holes of the files."""
    rng = np.random.default_rng(0)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("r+b") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            left = (path.stat().st_size - file.tell()) // 2
            while left:
                count = min(left, 2**22)
                numbers = 0.02 * rng.standard_normal(count, dtype=np.float32)
                file.write(numbers.astype(ml_dtypes.bfloat16).tobytes())
                left -= count


def measure(command: str, arguments: Sequence[str]) -> None:
    """Run a command of maxlm, and print its time and the most memory that it had."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "maxlm", command, *arguments], check=True, env=os.environ)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, busy = time.perf_counter() - began, used.ru_utime - before.ru_utime
    system = used.ru_stime - before.ru_stime
    print(
        f"maxlm {command}: {seconds:.1f} s, {busy:.1f} s of CPU and {system:.1f} s of the system; "
        f"at most {used.ru_maxrss / 1e6:.2f} GB in memory by now"
    )


def same(source: Path, out: Path) -> bool:
    """Return whether two folders have the same tensors."""
    read, written = places(source), places(out)
    return read.keys() == written.keys() and all(
        np.array_equal(
            tensor(path, name).view(np.uint16), tensor(written[name], name).view(np.uint16)
        )
        for name, path in read.items()
    )


def places(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def tensor(path: Path, name: str) -> np.ndarray:
    """Read one tensor."""
    with safe_open(path, "numpy") as file:
        values: np.ndarray = file.get_tensor(name)
    return values


if __name__ == "__main__":
    main()
