"""Measure what importing published weights takes of the host's memory, besides what devices hold.

    .venv/bin/python scripts/bench_import.py [--gigabytes 20] [--folder FOLDER]

Makes an index of so many bytes in files of 5 GB, a Llama in bf16. They are sparse files: reading
gives zeros, and they take no room on the disk. Every parameter is read onto one device and dropped.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from maxlm.checkpoint.hf.families import FAMILIES
from maxlm.checkpoint.hf.families.family import parts_of
from maxlm.checkpoint.hf.load import load_each
from maxlm.checkpoint.hf.published import model_of, open_published
from maxlm.config.schema import MeshConfig
from maxlm.models.decoder import Decoder
from maxlm.sharding.mesh import build_mesh
from maxlm.sharding.parameters import named_parameters

SHARD_BYTES = 5 * 10**9
LAYER = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4096}
CONFIG = {"model_type": "qwen2", "vocab_size": 32_000, **LAYER, **WINDOWS}
PATTERN = ["full_attention", "sliding_attention"]  # two sets of stacked parameters, half as large


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    layers = 2 * round(arguments.gigabytes * 1e9 / (2 * 2 * 4096 * (4 * 4096 + 3 * 11008)))
    config = {**CONFIG, "num_hidden_layers": layers, "layer_types": PATTERN * (layers // 2)}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        files = write_sparse(Path(name), config, SHARD_BYTES)
        measure(Path(name), files)


def measure(folder: Path, files: int) -> None:
    """Read every parameter, and print how the host's memory grew."""
    published = open_published(folder)
    declared = Decoder(published.model)
    sizes = {path: 4 * math.prod(p.get_value().shape) for path, p in named_parameters(declared)}
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    mesh = build_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    now, peak, before = 0, 0, resident_bytes()

    def look(elements: int) -> None:
        nonlocal peak
        del elements
        peak = max(peak, resident_bytes() - before - now)

    began = time.perf_counter()
    loaded = load_each(published, declared, mesh, look)
    for own in sizes.values():
        now = own
        next(loaded)
        gc.collect()  # dropped before the next: arrays are in cycles
    seconds = time.perf_counter() - began
    print(f"{size / 1e9:.1f} GB in {files} files of at most {SHARD_BYTES / 1e9:.0f} GB")
    print(f"largest parameter {max(sizes.values()) / 1e9:.2f} GB in fp32, on the device")
    print(f"host, besides the device: {peak / 1e9:.2f} GB at most; {seconds:.0f} s")


def resident_bytes() -> int:
    """Return the bytes of this process that are in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * 4096


def write_sparse(folder: Path, config: Mapping[str, Any], shard_bytes: int) -> int:
    """Write config.json, an index, and files with as many bytes as its weights have, all holes.

    Returns:
      how many files.
    """
    family = FAMILIES[config["model_type"]]
    model, _ = model_of(family, config, "")
    parts = parts_of(family, Decoder(model), model.vocab_size)
    files: list[dict[str, Any]] = [{}]
    weight_map, end = {}, 0
    for name, shape in {part.tensor: part.shape for part in parts}.items():
        size = 2 * math.prod(shape)
        if end + size > shard_bytes:
            files.append({})
            end = 0
        entry = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        files[-1][name] = entry
        weight_map[name] = f"m-{len(files)}.safetensors"
        end += size
    for number, header in enumerate(files, 1):
        text = json.dumps(header).encode()
        end = max(entry["data_offsets"][1] for entry in header.values())
        with (folder / f"m-{number}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return len(files)


if __name__ == "__main__":
    main()
