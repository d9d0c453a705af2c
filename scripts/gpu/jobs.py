"""What `scripts/gpu_report` asks of the GPU: a list of jobs, each a few numbers that JSON can hold."""

from __future__ import annotations

from typing import Any, NamedTuple

KERNELS = ("flash_hopper", "flash_triton")
PARTS = ("facts", "checks", "attention", "grouped", "tuning", "training")


class Job(NamedTuple):
    """A piece of work for one process.

    Attributes:
      part: of the report.
      name: unique in its part.
      given: arguments of the function that does it.
      seconds: after which it is given up.
    """

    part: str
    name: str
    given: dict[str, Any]
    seconds: float = 120.0


FEATURES: dict[str, dict[str, Any]] = {
    "causal": {"length": 1024},
    "grouped heads": {"length": 640, "heads": 8, "kv_heads": 2},
    "packed documents": {"length": 1024, "documents": 5, "of_none": 0.05},
    "window": {"length": 1024, "window": 200},
    "packed, window, length 1,000": {"length": 1000, "documents": 3, "window": 150},
    "bidirectional": {"length": 512, "causal": False},
    "softcap": {"length": 512, "softcap": 2.0},
    "another scale": {"length": 512, "scale": 0.3},
    "keys before the queries": {"length": 256, "kv_length": 768, "q_start": 512},
    "one query": {"length": 1, "kv_length": 200, "q_start": 190},
    "all kinds of masks": {"length": 384, "masks": True},
    "head 64": {"length": 512, "head_dim": 64},
    "head 80": {"length": 330, "head_dim": 80},
    "head 96": {"length": 512, "head_dim": 96},
    "head 192, values 128": {"length": 512, "head_dim": 192, "v_dim": 128},
    "head 256": {"length": 512, "head_dim": 256},
    "everything at once": {
        "length": 330, "kv_length": 500, "q_start": 100, "heads": 4, "kv_heads": 2, "head_dim": 80, "v_dim": 64,
        "documents": 3, "of_none": 0.05, "window": 150, "softcap": 2.0, "scale": 0.2,
    },
}  # fmt: skip
"""Options of `tests.kernels.oracle.make_inputs` and of how scores are made."""
OF_TRITON: dict[str, dict[str, Any]] = {
    "fp32": {"length": 512, "dtype": "float32"},
    "fp32, head 128, packed": {"length": 300, "head_dim": 128, "documents": 3, "dtype": "float32"},
    "slopes by distance": {"length": 512, "by_distance": "slopes"},
}
"""What Hopper's kernels do not have."""

# Heads, their size and length; 65,536 tokens in all up to 16,384, then two sequences or one.
CAUSAL = [
    (size, length)
    for size, lengths in ((128, (1, 2, 4, 8, 16, 32)), (64, (1, 4, 16)), (256, (4, 16)))
    for length in (n * 1024 for n in lengths)
]
OTHERS: dict[str, dict[str, Any]] = {
    "head 128, 16k in documents of 1k": {"size": 128, "length": 16384, "document": 1024},
    "head 128, 16k, window 1,024": {"size": 128, "length": 16384, "window": 1024},
    "head 128, 8k, 4 heads a key": {"size": 128, "length": 8192, "kv_heads": 4},
}
HEADS = 16

# What is tried in place of maxlm/kernels/block_sizes.py at 16,384 tokens: blocks of the forward pass, dq, dk and dv.
HOPPER_BLOCKS: dict[int, tuple[dict[str, Any], ...]] = {
    64: (
        {"forward": 64}, {"forward": 192}, {"d_q": 32}, {"d_q": 128}, {"d_kv": 32}, {"d_kv": 128}, {"turns": False},
    ),
    128: (
        {"forward": 64}, {"forward": 96}, {"forward": 112}, {"forward": 160}, {"d_q": 32}, {"d_q": 96}, {"d_kv": 32},
        {"d_kv": 96}, {"forward": 128, "turns": True},
    ),
    256: ({"forward": 32}, {"forward": 80}, {"d_q": 16}, {"d_q": 64}, {"d_kv": 32}, {"forward": 64, "turns": False}),
}  # fmt: skip
# Queries and keys of a block, warps, stages.
TRITON_TILES: dict[int, tuple[dict[str, Any], ...]] = {
    64: (
        {"forward": (128, 128, 8, 2)}, {"forward": (128, 64, 4, 3)}, {"d_kv": (64, 64, 4, 2)}, {"d_q": (128, 32, 8, 2)},
    ),
    128: (
        {"forward": (128, 128, 8, 2)}, {"forward": (128, 64, 4, 3)}, {"d_kv": (64, 128, 8, 2)},
        {"d_q": (128, 64, 8, 2)},
        {"d_q": (64, 64, 4, 2)},
    ),
}  # fmt: skip

EXPERTS: dict[str, dict[str, int]] = {
    "64 experts of 1,024, 65,536 rows of 2,048": {"rows": 65536, "dim": 2048, "hidden": 1024, "experts": 64},
    "8 experts of 14,336, 16,384 rows of 4,096": {"rows": 16384, "dim": 4096, "hidden": 14336, "experts": 8},
}  # fmt: skip
"""The mixture that is trained below, and Mixtral's."""
WAYS_TRIED: tuple[tuple[str, dict[str, int]], ...] = (
    ("dense", {}),
    *(("loop", {"tile_rows": rows}) for rows in (512, 256, 1024, 2048)),
    ("mosaic", {"block_m": 128, "block_n": 128, "block_k": 64}),
    ("mosaic", {"block_m": 64, "block_n": 256, "block_k": 64}),
    ("mosaic", {"block_m": 128, "block_n": 256, "block_k": 64}),
    ("xla", {}),
)
"""How experts' products are computed (`scripts/gpu/grouped.py`), in the order in which they matter."""

_BENCH = (
    "mesh={fsdp: 1}",
    "data.sequence_length=4096",
    "runtime.compile_cache=null",
    "run_dir=runs/gpu_report",
)
_SAVE = (
    "train.remat={query: save, key: save, value: save, attention_out: save, attention_lse: save}"
)
_LLAMA = ("configs/run/llama3_1b_h100x8.yaml", *_BENCH, "train.batch_size=16")
TRAINING: dict[str, tuple[str, ...]] = {
    "1B": (*_LLAMA, "train.microbatches=4", "train.remat=none"),
    "1B, cuDNN's attention": (
        *_LLAMA, "train.microbatches=4", "train.remat=none", "runtime.kernels.attention=cudnn",
    ),
    "largest dense": (
        *_LLAMA, _SAVE, "train.microbatches=8", "model.embed_dim=2560", "model.num_layers=32",
        "model.block.mixer.num_heads=20", "model.block.mixer.num_kv_heads=4", "model.block.mixer.head_dim=128",
        "model.block.ffn.hidden_dim=10240",
        "model.vocab_size=32768",
    ),
    "largest mixture of experts": (
        *_LLAMA, _SAVE, "train.microbatches=8", "model.num_layers=6", "model.vocab_size=32768",
        "model.block.ffn={kind: moe, num_experts: 64, experts_per_token: 8, expert_dim: 1024, activation: swiglu}",
    ),
}  # fmt: skip
"""A run's file and what is changed in it; one GPU, as large as fits into 80 GB with fp32 weights and Adam."""


def all_jobs(parts: tuple[str, ...], kernels: tuple[str, ...] = KERNELS) -> list[Job]:
    """Return the jobs of some parts, in the order in which they matter."""
    jobs = [Job("facts", "device", {})]
    for kernel in kernels:
        features = FEATURES | (OF_TRITON if kernel == "flash_triton" else {})
        jobs += [
            Job("checks", f"{kernel}: {name}", {"kernel": kernel, "options": options})
            for name, options in features.items()
        ]
    for size, length in CAUSAL:
        given = {"size": size, "length": length}
        jobs.append(Job("attention", f"head {size}, {length // 1024}k", given))
    jobs += [Job("attention", name, given) for name, given in OTHERS.items()]
    for shape, sizes in EXPERTS.items():
        for way, blocks in WAYS_TRIED:
            if way == "xla" and sizes["experts"] > 8:
                continue  # a dense product of all rows for each: out of memory
            name = " ".join((way, *map(str, blocks.values())))
            jobs.append(Job("grouped", f"{shape}: {name}", {**sizes, "way": way, "given": blocks}))
    for kernel, tables in (("flash_hopper", HOPPER_BLOCKS), ("flash_triton", TRITON_TILES)):
        if kernel in kernels:
            jobs += [
                Job("tuning", f"{kernel}, head {size}: {changes}", {"kernel": kernel, "size": size, "changes": changes})
                for size, candidates in tables.items()
                for changes in candidates
            ]  # fmt: skip
    jobs += [
        Job("training", name, {"arguments": list(arguments)}, seconds=240.0)
        for name, arguments in TRAINING.items()
    ]
    return [job for job in jobs if job.part in parts]


def first_of_each(jobs: list[Job]) -> list[Job]:
    """Return one job of each part, kernel and way, to rehearse."""
    chosen: dict[tuple[str, str | None], Job] = {}
    for job in jobs:
        chosen.setdefault((job.part, job.given.get("kernel") or job.given.get("way")), job)
    return list(chosen.values())
