"""Choose the attention kernels' block sizes: print what candidates cost, and lines for
maxlm/kernels/block_sizes.py.

.venv/bin/python -m scripts.tune_attention tpu --generations v5p v6e      (needs libtpu, no TPU)
.venv/bin/python -m scripts.tune_attention tpu --measure                  (on a TPU)

Without a TPU every candidate is compiled ahead of time and the cycles of its schedule are counted,
of each loop and of what a row of blocks costs besides: bundles (instruction words), and the empty
ones in which the schedule waits for a unit. A long causal sequence's sum of them ranks the
candidates. Copies from memory are not in it; they run beside.
"""

from __future__ import annotations

import argparse
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
import numpy as np
from jax.experimental import topologies
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import SingleDeviceSharding

from maxlm.kernels import block_sizes, tpu_attention
from maxlm.kernels.block_sizes import BlockSizes
from maxlm.kernels.mask import causal, with_least
from maxlm.kernels.tpu_kernels import TURN

TPU_GENERATIONS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
TPU_CANDIDATES = [(512, 512), (1024, 512), (1024, 1024)]
PASSES = ("forward", "backward")
KV_HEADS, GROUP = 2, 4
REPEATS = 20
SEQUENCES = [
    (8192, 1024),
    (8192, 8192),
    (block_sizes.LONG, 8192),
    (block_sizes.LONG, block_sizes.LONG),
]
"""Tokens, and tokens of a document on average, of the causal sequences that costs are summed over.

The last decides.
"""
WORTH = 0.05
"""What blocks other than the default must save there.

Documents end within blocks, which then cost more if large.
"""
SCHEDULE, WORDS = "-packed-bundles-post-ra.txt", "-final_bundles.txt"
"""Files of the compiler's dump: bundles with the empty ones of waits, and what is left of them in
the program.
"""


class Cost(NamedTuple):
    """Bundles of each block, by kind, and of a row of blocks besides.

    Attributes:
      start: forward, the scores of a row's first block, with mask arithmetic.
      partly: of a block that is seen partly, and in the forward pass of one seen wholly that makes
        their number even.
      whole: of a block that every query sees wholly.
      row: what is outside the loops.
      per_turn: blocks seen wholly that are taken at a time.
    """

    start: int
    partly: int
    whole: float
    row: int
    per_turn: int

    def of_sequence(self, segments: np.ndarray, q_block: int, kv_block: int) -> float:
        """Return the bundles of one head's causal attention to documents."""
        whole, partly = blocks_of_rows(segments, q_block, kv_block)
        odd = whole % self.per_turn
        first = 1 if self.start else 0
        rows = (
            self.row
            + self.start
            + (whole - odd) * self.whole
            + (partly + odd - first) * self.partly
        )
        return float(rows.sum())


def blocks_of_rows(
    segments: np.ndarray, q_block: int, kv_block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count the blocks of keys that each row of blocks sees wholly and partly; `segments` lie one
    after the other.
    """
    queries, keys = segments.reshape(-1, 1, q_block), segments.reshape(1, -1, kv_block)
    q_first, kv_first = (np.arange(0, len(segments), block) for block in (q_block, kv_block))
    meet = (queries[..., 0] <= keys[..., -1]) & (queries[..., -1] >= keys[..., 0])
    meet &= (q_first + q_block > kv_first[:, None]).T
    whole = (queries[..., 0] == queries[..., -1]) & (keys[..., 0] == keys[..., -1]) & meet
    whole &= (q_first >= kv_first[:, None] + kv_block - 1).T
    return whole.sum(1), (meet & ~whole).sum(1)


def documents(length: int, mean: int) -> np.ndarray:
    """Return the segments of packed documents, of exponentially distributed lengths if there are
    more than one.
    """
    if mean >= length:
        return np.ones(length, np.int32)
    ends = np.random.default_rng(0).exponential(mean, 4 * length // mean + 20).cumsum()
    return np.searchsorted(ends, np.arange(length), side="right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("platform", choices=["tpu"])
    parser.add_argument(
        "--generations", nargs="+", default=list(TPU_GENERATIONS), choices=TPU_GENERATIONS
    )
    parser.add_argument(
        "--head-sizes", nargs="+", type=pair, default=[(128, 128)], help="such as 64 or 192/128"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument(
        "--candidates", nargs="+", type=pair, default=TPU_CANDIDATES, help="such as 512/1024"
    )
    parser.add_argument("--measure", action="store_true", help="time on the TPU that is here")
    parser.add_argument(
        "--splash", action="store_true", help="count the bundles of JAX's splash attention too"
    )
    arguments = parser.parse_args()
    tune_tpu(arguments)


def pair(text: str) -> tuple[int, int]:
    """Return the numbers of "192/128", of queries and keys or keys and values, or one number twice."""
    numbers = [int(number) for number in text.split("/")]
    return numbers[0], numbers[-1]


def tune_tpu(arguments: argparse.Namespace) -> None:
    """Print each candidate's cost and the table's lines with the best."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TPU_SKIP_MDS_QUERY"] = os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
        if not arguments.measure:
            passes = "--xla_jf_dump_llo_pass_label_regex=final|post-ra"
            os.environ["LIBTPU_INIT_ARGS"] = (
                f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true {passes}"
            )
        for device in tpu_devices(arguments):
            for sizes in arguments.head_sizes:
                best = tuple(
                    best_blocks(tpu_costs(device, sizes, which, arguments, Path(folder)))
                    for which in PASSES
                )
                if best != block_sizes.TPU_DEFAULT:
                    key = device.device_kind, max(sizes), arguments.dtype
                    lines.append(f"    {key}: {best},".replace("'", '"'))
                if arguments.splash:
                    count_splash(device, sizes, Path(folder))
    print(
        f"# jax {jax.__version__}, {time.strftime('%Y-%m-%d')}, by {'time' if arguments.measure else 'cycles'}"
    )
    print("\n".join(lines))


def best_blocks(costs: Iterator[tuple[tuple[int, int], float]]) -> tuple[int, int]:
    """Return the cheapest blocks, or the default where others save too little to make up for
    coarser borders.
    """
    known = dict(costs)
    best, default = min(known, key=known.__getitem__), block_sizes.TPU_DEFAULT[0]
    return best if known[best] < (1 - WORTH) * known.get(default, float("inf")) else default


def tpu_devices(arguments: argparse.Namespace) -> list[jax.Device]:
    if arguments.measure:
        return jax.devices("tpu")[:1]
    names = [TPU_GENERATIONS[generation] for generation in arguments.generations]
    return [
        topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0]
        for name in names
    ]


def tpu_costs(
    device: jax.Device,
    sizes: tuple[int, int],
    which: str,
    arguments: argparse.Namespace,
    folder: Path,
) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield (blocks, cost of a head's causal sequence): cycles, or seconds of the whole call if
    measured.
    """
    for q_block, kv_block in arguments.candidates:
        length = SEQUENCES[-1][0] if arguments.measure else 4 * max(q_block, kv_block)
        blocks = BlockSizes(q_block, kv_block, length)
        setattr(block_sizes, f"tpu_{which}", lambda _, blocks=blocks: blocks)
        function, inputs = attention_pass(which, length, sizes, arguments.dtype, device)
        title = f"{device.device_kind:12} {which:8} {sizes[0]:3}/{sizes[1]} {q_block:4}/{kv_block}"
        if arguments.measure:
            cost = median_seconds(function, inputs)
            print(f"{title}: {cost * 1e6:.0f} us", flush=True)
        else:
            try:
                jax.jit(function).lower(*inputs).compile()
            except jax.errors.JaxRuntimeError as error:
                print(f"{title}: {str(error).splitlines()[0][:160]}", flush=True)
                continue
            cycles, words = (count_bundles(folder, which, kind) for kind in (SCHEDULE, WORDS))
            clear(folder)
            costs = [
                cycles.of_sequence(documents(*sequence), q_block, kv_block)
                for sequence in SEQUENCES
            ]
            cost = costs[-1]
            counts = " ".join(
                f"{name} {n:.0f} ({w:.0f})"
                for name, n, w in zip(Cost._fields, cycles, words, strict=True)
            )
            print(
                f"{title}: cycles (words) {counts} sequences {' '.join(f'{cost:.0f}' for cost in costs)}",
                flush=True,
            )
        yield (q_block, kv_block), cost


def attention_pass(which: str, length: int, sizes: tuple[int, int], dtype: str, device: jax.Device):
    """Return one pass as a function of its arrays, and the arrays' shapes."""

    def array(*shape: int, dtype: str = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    def heads(count: int, size: int) -> jax.ShapeDtypeStruct:
        return array(1, length, count, size)

    (size, v_size), num_heads = sizes, KV_HEADS * GROUP
    segments = array(1, length, dtype="int32")
    inputs = heads(num_heads, size), heads(KV_HEADS, size), heads(KV_HEADS, v_size)

    def forward(q, k, v, segments):
        place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), segments.shape)
        mask = with_least(causal(segments, place), segments)
        return tpu_attention.forward(q, k, v, mask, device_kind=device.device_kind)

    def backward(q, k, v, out, lse, d_out, segments):
        place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), segments.shape)
        mask = with_least(causal(segments, place), segments)
        return tpu_attention.backward(
            q, k, v, out, lse, d_out, mask, device_kind=device.device_kind
        )

    if which == "forward":
        return forward, (*inputs, segments)
    out, lse = heads(num_heads, v_size), array(1, num_heads, length, dtype="float32")
    return backward, (*inputs, out, lse, out, segments)


def median_seconds(function, shapes) -> float:
    """Time a compiled call on random arrays of one document."""

    def fill(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if shape.dtype == jnp.int32:
            return jnp.ones(shape.shape, jnp.int32)
        return jax.random.normal(jax.random.key(0), shape.shape, shape.dtype)

    inputs, compiled = jax.tree.map(fill, shapes), jax.jit(function)
    jax.block_until_ready(compiled(*inputs))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*inputs))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def count_bundles(folder: Path, which: str, kind: str) -> Cost:
    """Read the compiler's schedule of our kernel: its largest loops, in the order in which they
    run, and the rest.
    """
    regions = read_regions(folder, f"flash_attention_{which}", kind)
    number = 3 if which == "forward" else 2
    largest = sorted((bundles for depth, bundles in regions if depth == 2), reverse=True)[:number]
    loops = [
        place
        for place, (depth, bundles) in enumerate(regions)
        if depth == 2 and bundles >= largest[-1]
    ]
    outside = regions[: loops[0]] + regions[loops[-1] :]
    row = sum(bundles for depth, bundles in outside if depth == 1)
    *start, partly, whole = (regions[place][1] for place in loops)
    per_turn = TURN if which == "forward" else 1
    return Cost(start[0] if start else 0, partly, whole / per_turn, row, per_turn)


def clear(folder: Path) -> None:
    for old in folder.iterdir():
        old.unlink()


def read_regions(folder: Path, kernel: str, kind: str) -> list[tuple[int, int]]:
    """Return (loop depth, bundles) of each straight piece of code."""
    text = next(
        path for path in folder.iterdir() if kernel in path.name and path.name.endswith(kind)
    ).read_text()
    regions: list[tuple[int, int]] = []
    for line in text.splitlines():
        match = re.match(r"\s*(?:0x[0-9a-f]+|0)\s+(L[HBE]|P[BF])?\s*:\s*(>*)(\s*\{\}$)?", line)
        if match is None:
            continue
        # Empty ones do not say how deep they are.
        depth = regions[-1][0] if regions and match[3] else len(match[2])
        if regions and not match[1] and regions[-1][0] == depth:
            regions[-1] = depth, regions[-1][1] + 1
        else:
            regions.append((depth, 1))
    return regions


def count_splash(device: jax.Device, sizes: tuple[int, int], folder: Path) -> None:
    """Print the cycles of a block of JAX's splash attention, forward and its fused backward.

    Where anything may be hidden it computes masks in every block: counted without, and causal with
    segments.
    """
    block, heads, length = 512, KV_HEADS * GROUP, 2048
    blocks = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, use_fused_bwd_kernel=True,
    )  # fmt: skip

    def array(*shape: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    q, v, segment = (
        array(heads, length, sizes[0]),
        array(heads, length, sizes[1]),
        array(length, dtype="int32"),
    )
    for kind in (splash_mask.FullMask, splash_mask.CausalMask):
        mask = splash_mask.MultiHeadMask([kind((length, length))] * heads)
        kernel = splash.make_splash_mha(mask, block_sizes=blocks, head_shards=1, q_seq_shards=1)

        def attend(q, k, v, segment, kind=kind, kernel=kernel):
            segments = None if kind is splash_mask.FullMask else splash.SegmentIds(segment, segment)
            return kernel(q, k, v, segment_ids=segments)

        def gradients(q, k, v, segment, attend=attend):
            return jax.vjp(lambda *qkv: attend(*qkv, segment), q, k, v)[1](v)

        for function, name in ((attend, "splash_mha_fwd"), (gradients, "splash_mha_dkv")):
            title = f"{device.device_kind:12} {name} {kind.__name__} {sizes[0]:3}/{sizes[1]} {block:4}/{block}"
            try:
                jax.jit(function).lower(q, q, v, segment).compile()
            except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
                print(f"{title}: {str(error).splitlines()[0][:160]}", flush=True)
                continue
            regions = [read_regions(folder, name, kind) for kind in (SCHEDULE, WORDS)]
            clear(folder)
            cycles, words = (max(bundles for _, bundles in region) for region in regions)
            rest = sum(bundles for depth, bundles in regions[0] if depth == 1) - cycles
            print(f"{title}: cycles (words) {cycles} ({words}), other pieces {rest}", flush=True)


if __name__ == "__main__":
    main()
