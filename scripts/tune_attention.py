"""Choose the attention kernels' block sizes: print what candidates cost, and lines for maxlm/kernels/block_sizes.py.

.venv/bin/python -m scripts.tune_attention tpu --generations v5p v6e      (needs libtpu, no TPU)
.venv/bin/python -m scripts.tune_attention tpu --measure                  (on a TPU)

Without a TPU every candidate is compiled ahead of time and the bundles (instruction words, a cycle each unless one
stalls) of its loops are counted: of a block that is seen wholly, of one with mask arithmetic, and of what a row of
blocks costs besides. A causal sequence's sum of them ranks the candidates. Copies from memory are not in it; they run
beside.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import SingleDeviceSharding

from maxlm.kernels import block_sizes, tpu_attention
from maxlm.kernels.block_sizes import BlockSizes
from maxlm.kernels.mask import Mask

TPU_GENERATIONS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
TPU_CANDIDATES = [(512, 512), (512, 1024), (1024, 512)]
PASSES = ("forward", "backward")
KV_HEADS, GROUP = 2, 4
REPEATS = 20


class Cost(NamedTuple):
    """Bundles of one block seen wholly, of one seen partly, and of a row of blocks besides.

    The forward kernel takes whole blocks `per_turn` = 2 at a time; a row's first and last are outside its loop.
    """

    whole: float
    partly: float
    row: float
    per_turn: int

    def of_sequence(self, length: int, q_block: int, kv_block: int) -> float:
        """Return the bundles of one head's causal attention."""
        total = 0.0
        for start in range(0, length, q_block):
            whole = (start + 1) // kv_block
            partly = -(-(start + q_block) // kv_block) - whole
            in_loop = whole if self.per_turn == 1 else max(whole - 1, 0) // 2 * 2
            total += self.row + in_loop * self.whole + partly * self.partly
        return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("platform", choices=["tpu"])
    parser.add_argument("--generations", nargs="+", default=list(TPU_GENERATIONS), choices=TPU_GENERATIONS)
    parser.add_argument("--head-sizes", nargs="+", type=int, default=[128])
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--measure", action="store_true", help="time on the TPU that is here")
    parser.add_argument("--splash", action="store_true", help="count the bundles of JAX's splash attention too")
    arguments = parser.parse_args()
    tune_tpu(arguments)


def tune_tpu(arguments: argparse.Namespace) -> None:
    """Print each candidate's cost and the table's lines with the best."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TPU_SKIP_MDS_QUERY"] = os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
        if not arguments.measure:
            flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final"
            os.environ["LIBTPU_INIT_ARGS"] = flags
        for device in tpu_devices(arguments):
            for size in arguments.head_sizes:
                best = {}
                for which in PASSES:
                    costs = dict(tpu_costs(device, size, which, arguments, Path(folder)))
                    best[which] = min(costs, key=costs.__getitem__)
                lines.append(f"    ({device.device_kind!r}, {size}, {arguments.dtype!r}): {tuple(best.values())},")
                if arguments.splash:
                    count_splash(device, size, Path(folder))
    print(f"# jax {jax.__version__}, {time.strftime('%Y-%m-%d')}, by {'time' if arguments.measure else 'bundles'}")
    print("\n".join(lines))


def tpu_devices(arguments: argparse.Namespace) -> list[jax.Device]:
    if arguments.measure:
        return jax.devices("tpu")[:1]
    names = [TPU_GENERATIONS[generation] for generation in arguments.generations]
    return [topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0] for name in names]


def tpu_costs(
    device: jax.Device, size: int, which: str, arguments: argparse.Namespace, folder: Path
) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield (blocks, cost of a head's causal sequence): bundles, or seconds of the whole call if measured."""
    for q_block, kv_block in TPU_CANDIDATES:
        length = arguments.length if arguments.measure else 4 * max(q_block, kv_block)
        sizes = BlockSizes(q_block, kv_block, length)
        setattr(block_sizes, f"tpu_{which}", lambda _, sizes=sizes: sizes)
        function, inputs = attention_pass(which, length, size, arguments.dtype, device)
        title = f"{device.device_kind:12} {which:8} {size:4} {q_block:5}/{kv_block}"
        if arguments.measure:
            cost = median_seconds(function, inputs)
            print(f"{title}: {cost * 1e6:.0f} us", flush=True)
        else:
            jax.jit(function).lower(*inputs).compile()
            bundles = count_bundles(folder, which)
            cost = bundles.of_sequence(arguments.length, q_block, kv_block)
            whole, partly, row, _ = bundles
            print(f"{title}: whole {whole:.0f} partly {partly:.0f} row {row:.0f} sequence {cost:.0f}", flush=True)
        yield (q_block, kv_block), cost


def attention_pass(which: str, length: int, size: int, dtype: str, device: jax.Device):
    """Return one pass as a function of its arrays, and the arrays' shapes."""

    def array(*shape: int, dtype: str = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    segments, start = array(1, length, dtype="int32"), array(dtype="int32")
    q = array(1, length, KV_HEADS * GROUP, size)
    k = array(1, length, KV_HEADS, size)
    mask = Mask(segments, segments, start, start)
    if which == "forward":
        return functools.partial(tpu_attention.forward, device_kind=device.device_kind), (q, k, k, mask)
    lse = array(1, KV_HEADS * GROUP, length, dtype="float32")
    return functools.partial(tpu_attention.backward, device_kind=device.device_kind), (q, k, k, q, lse, q, mask)


def median_seconds(function, shapes) -> float:
    """Time a compiled call on random arrays of one document."""

    def fill(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if shape.dtype == jnp.int32:
            return jnp.full(shape.shape, 1 if shape.shape else 0, jnp.int32)
        return jax.random.normal(jax.random.key(0), shape.shape, shape.dtype)

    inputs, compiled = jax.tree.map(fill, shapes), jax.jit(function)
    jax.block_until_ready(compiled(*inputs))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*inputs))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def count_bundles(folder: Path, which: str) -> Cost:
    """Read the compiler's final schedule of our kernel: its two innermost loops, and the rest of a grid step."""
    regions = read_regions(folder, f"flash_attention_{which}")
    loops = sorted((bundles for depth, bundles in regions if depth == 2), reverse=True)[:2]
    row = sum(bundles for depth, bundles in regions if depth == 1)
    if which == "forward":  # two blocks in one turn of its loop
        return Cost(loops[0] / 2, loops[1], row, 2)
    return Cost(loops[1], loops[0], row, 1)


def read_regions(folder: Path, kernel: str) -> list[tuple[int, int]]:
    """Return (loop depth, bundles) of each straight piece of code, and remove the dump."""
    path = next(path for path in folder.iterdir() if kernel in path.name and path.name.endswith("-final_bundles.txt"))
    text = path.read_text()
    for old in folder.iterdir():
        old.unlink()
    regions: list[tuple[int, int]] = []
    for line in text.splitlines():
        match = re.match(r"\s*(?:0x[0-9a-f]+|0)\s+(L[HBE]|P[BF])?\s*:\s*(>*)", line)
        if match is None:
            continue
        depth = len(match[2])
        if regions and not match[1] and regions[-1][0] == depth:
            regions[-1] = depth, regions[-1][1] + 1
        else:
            regions.append((depth, 1))
    return regions


def count_splash(device: jax.Device, size: int, folder: Path) -> None:
    """Print the bundles of a block of JAX's splash attention, forward and its fused backward.

    Where anything may be hidden it computes masks in every block: counted without, and causal with segments.
    """
    block, heads, length = 512, KV_HEADS * GROUP, 2048
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, use_fused_bwd_kernel=True,
    )  # fmt: skip
    array = jax.ShapeDtypeStruct((heads, length, size), jnp.bfloat16, sharding=SingleDeviceSharding(device))
    segment = jax.ShapeDtypeStruct((length,), jnp.int32, sharding=SingleDeviceSharding(device))
    for kind in (splash_mask.FullMask, splash_mask.CausalMask):
        mask = splash_mask.MultiHeadMask([kind((length, length))] * heads)
        kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)

        def attend(q, k, v, segment, kind=kind, kernel=kernel):
            segments = None if kind is splash_mask.FullMask else splash.SegmentIds(segment, segment)
            return kernel(q, k, v, segment_ids=segments)

        def gradients(q, k, v, segment, attend=attend):
            return jax.vjp(lambda *qkv: attend(*qkv, segment), q, k, v)[1](q)

        for function, name in ((attend, "splash_mha_fwd"), (gradients, "splash_mha_dkv")):
            jax.jit(function).lower(array, array, array, segment).compile()
            bundles = max(bundles for _, bundles in read_regions(folder, name))
            print(f"{device.device_kind:12} {name} {kind.__name__} {size:4} {block:5}/{block}: {bundles}", flush=True)


if __name__ == "__main__":
    main()
