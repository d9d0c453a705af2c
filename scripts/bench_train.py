"""Measure the training step: tokens/s, compile time, memory, time to first step, MFU; and plain
PyTorch beside it.

.venv/bin/python scripts/bench_train.py                                           (the shapes of SHAPES)
.venv/bin/python scripts/bench_train.py --config RUN.yaml [key=value ...]         (one run's shape)
A GPU, a decoder of 1.2 B parameters, in bfloat16:
.venv/bin/python scripts/bench_train.py --config configs/run/llama3_1b_h100x8.yaml mesh.fsdp=1
train.batch_size=8 \
    train.microbatches=4 data.sequence_length=4096

The comparison (--against) is made on the CPU alone and needs torch: .venv/bin/pip install -e
'.[bench]'.

Each side is a process of its own, so that neither's threads disturb the other's, and both keep
their memory and compiled code. They start from the same parameters and must compute the same
losses. Then they take turns of a few seconds, in changing order; a ratio is the median over pairs
of neighbouring turns, which cancels most of what other work on the machine does. The first step of a
turn is not timed: while a side waits, a virtual machine may hand its free memory back to the host,
and a step that takes it again waits for the host, which no training run does. Batches are random
tokens, one document per row, already on the device.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maxlm.config import RunConfig, UserError, load_run
from maxlm.devices import peak_flops
from maxlm.metrics.throughput import rates
from maxlm.models.cost import flops_per_token, parameter_count

FOLDER = Path(__file__).parent
QUICKSTART = FOLDER.parent / "configs/run/quickstart.yaml"
SHAPES = {
    "192 x 4": (
        "model.vocab_size=4096",
        "model.embed_dim=192",
        "model.num_layers=4",
        "model.block.mixer.num_heads=6",
        "model.block.ffn.hidden_dim=512",
        "data.sequence_length=256",
        "train.batch_size=16",
    ),
    "512 x 8": (
        "model.vocab_size=4096",
        "model.embed_dim=512",
        "model.num_layers=8",
        "model.block.mixer.num_heads=8",
        "model.block.mixer.num_kv_heads=4",
        "model.block.mixer.head_dim=64",
        "model.block.ffn.hidden_dim=1408",
        "data.sequence_length=512",
        "train.batch_size=4",
    ),
    "512 x 8, long": (
        "model.vocab_size=4096",
        "model.embed_dim=512",
        "model.num_layers=8",
        "model.block.mixer.num_heads=8",
        "model.block.mixer.num_kv_heads=4",
        "model.block.mixer.head_dim=64",
        "model.block.ffn.hidden_dim=1408",
        "data.sequence_length=2048",
        "train.batch_size=1",
    ),
    "quickstart": (),
    "quickstart with a mixture": (
        "model.block.ffn={kind: moe, num_experts: 8, experts_per_token: 2, expert_dim: 192, "
        "balance: {auxiliary_loss: 0.0}}",
    ),
}
"""What is measured without --config: changes to the quickstart's run."""

# The learning rate must be the same function on both sides; nothing is read from or written to
# disk.
BENCH = (
    "schedule.kind=constant",
    "schedule.warmup_steps=0",
    "optimizer.learning_rate=1e-3",
    "runtime.compile_cache=null",
)
SIDES = {
    "maxlm": ("bench_train_maxlm.py",),
    "pytorch": ("bench_train_pytorch.py",),
    "pytorch compiled": ("bench_train_pytorch.py", "--compile"),
}
WARM_STEPS = 3
LOSS_TOLERANCE = 1e-4


# --- what both sides share ------------------------------------------------------------------------


def make_batch(config: RunConfig, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int32 (tokens, targets), (B, T) each: every batch another, the same on both sides."""
    shape = (config.train.batch_size, config.data.sequence_length + 1)
    window = np.random.default_rng(index).integers(
        0, config.model.vocab_size, shape, dtype=np.int32
    )
    return np.ascontiguousarray(window[:, :-1]), np.ascontiguousarray(window[:, 1:])


def serve(run_steps: Callable[[int], list[float]], **facts: Any) -> None:
    """Answer each line of stdin, a number of steps, with one JSON line: seconds, losses, memory and
    the facts.
    """
    for line in sys.stdin:
        began = time.perf_counter()
        losses = run_steps(int(line))
        seconds = time.perf_counter() - began
        unit = 1 if sys.platform == "darwin" else 1024
        peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        print(
            json.dumps({"seconds": seconds, "losses": losses, "peak_rss_bytes": peak_rss, **facts}),
            flush=True,
        )


# --- measuring ------------------------------------------------------------------------------------


class Side:
    """One process with a training step."""

    def __init__(self, name: str, folder: Path):
        program, *options = SIDES[name]
        self.name, self.began = name, time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, str(FOLDER / program), str(folder), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first = self.run(1)
        self.first_step_seconds = time.perf_counter() - self.began

    def run(self, steps: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(
                f"{self.name} ended with exit code {self.process.wait()}; its messages are above"
            )
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Row(NamedTuple):
    """One side's line of the table."""

    side: str
    tokens_per_second: float
    ratio: float | None
    spread: tuple[float, float] | None
    facts: dict[str, Any]
    first_step_seconds: float


def measure(config: RunConfig, names: list[str], *, pairs: int, turn_seconds: float) -> list[Row]:
    """Run all sides in turns; ratios are maxlm's speed over the side's."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(config.model_dump_json())
        sides = [Side(names[0], Path(folder))]
        if sides[0].first["platform"] == "cpu":
            sides += [Side(name, Path(folder)) for name in names[1:]]
        names = [side.name for side in sides]
        warm = {side.name: side.run(WARM_STEPS) for side in sides}
        check_losses(
            {side.name: side.first["losses"] + warm[side.name]["losses"] for side in sides}
        )
        steps = max(1, round(turn_seconds * WARM_STEPS / warm[names[0]]["seconds"]))
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for pair in range(pairs):
            for side in sides if pair % 2 == 0 else reversed(sides):
                side.run(1)  # see the module's text
                last = side.run(steps)
                seconds[side.name].append(last["seconds"] / steps)
                side.first |= last
        for side in sides:
            side.close()
    tokens = config.train.batch_size * config.data.sequence_length
    rows = []
    for side in sides:
        ratios = sorted(
            theirs / ours
            for ours, theirs in zip(seconds[names[0]], seconds[side.name], strict=True)
        )
        quarter = len(ratios) // 4
        compared = side.name != names[0]
        rows.append(
            Row(
                side.name,
                tokens / statistics.median(seconds[side.name]),
                statistics.median(ratios) if compared else None,
                (ratios[quarter], ratios[-1 - quarter]) if compared else None,
                side.first,
                side.first_step_seconds,
            )
        )
    return rows


def check_losses(losses: dict[str, list[float]]) -> None:
    """Refuse to compare programs that do not compute the same thing: parameters, loss, gradient,
    clipping, AdamW.

    Raises:
      SystemExit: the losses of the first steps differ.
    """
    (_, reference), *others = losses.items()
    for name, values in others:
        if not np.allclose(values, reference, rtol=LOSS_TOLERANCE, atol=0):
            raise SystemExit(
                f"{name} computes other losses than maxlm: {values} instead of {reference}"
            )


# --- reporting ------------------------------------------------------------------------------------


def describe(name: str, config: RunConfig) -> str:
    """Say what is measured, in one line."""
    model, train, mixer = config.model, config.train, config.model.block.mixer
    return (
        f"### {name}: {parameter_count(model) / 1e6:.1f} M parameters, {model.num_layers} layers of {model.embed_dim}, "
        f"{mixer.num_heads} heads ({mixer.num_kv_heads} kv), vocabulary {model.vocab_size}, "
        f"{train.batch_size} x {config.data.sequence_length} tokens"
    )


def table(config: RunConfig, rows: list[Row]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| | tokens/s | maxlm's speed over it | TFLOP/s per device | MFU | compile | first step after | step's memory "
        "| peak RSS |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        facts = row.facts
        peak = config.metrics.peak_tflops and config.metrics.peak_tflops * 1e12
        peak = peak or peak_flops(facts.get("device_kind", ""), facts.get("dtype", "float32"))
        speed = rates(
            tokens=row.tokens_per_second,
            seconds=1.0,
            num_devices=facts.get("num_devices", 1),
            flops_per_token=flops_per_token(config.model, config.data.sequence_length),
            peak=peak,
        )
        mfu = speed.get("throughput/mfu")
        cells = [
            row.side,
            f"{row.tokens_per_second:,.0f}",
            ""
            if row.ratio is None or row.spread is None
            else f"{row.ratio:.2f} ({row.spread[0]:.2f}-{row.spread[1]:.2f})",
            f"{speed['throughput/tflops_per_device']:.3g}",
            "n/a" if mfu is None else f"{mfu:.1%}",
            f"{facts['compile_seconds']:.1f} s" if "compile_seconds" in facts else "",
            f"{row.first_step_seconds:.1f} s",
            mebibytes(facts.get("step_memory_bytes")),
            mebibytes(facts["peak_rss_bytes"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mebibytes(size: int | None) -> str:
    return f"{size / 2**20:,.0f} MiB" if size else ""


def machine(rows: list[Row]) -> str:
    """Say when, on what and with which versions this was measured."""
    packages = [name for name in ("jax", "flax", "optax", "torch") if find_spec(name)]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    devices = f"{rows[0].facts['num_devices']} x {rows[0].facts['device_kind']}"
    python = platform.python_version()
    return f"{dt.date.today()}, {devices}, {len(cpus())} CPU cores, {versions}, Python {python}"


def cpus() -> set[int]:
    return (
        os.sched_getaffinity(0)
        if hasattr(os, "sched_getaffinity")
        else set(range(os.cpu_count() or 1))
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, help="a run's YAML; without it, the shapes of SHAPES"
    )
    parser.add_argument(
        "--against",
        default="auto",
        choices=("auto", "nothing", *SIDES),
        help="what to compare with",
    )
    parser.add_argument("--pairs", type=int, default=9, help="turns each side takes")
    parser.add_argument("--turn-seconds", type=float, default=3.0, help="length of a turn")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    arguments = parser.parse_args()
    shapes = SHAPES if arguments.config is None else {arguments.config.stem: ()}
    for name, changes in shapes.items():
        try:
            config = load_run(
                arguments.config or QUICKSTART, (*changes, *BENCH, *arguments.overrides)
            ).config
        except UserError as error:
            raise SystemExit(str(error)) from None
        print(describe(name, config))
        rows = measure(
            config,
            sides(arguments.against),
            pairs=arguments.pairs,
            turn_seconds=arguments.turn_seconds,
        )
        print(table(config, rows))
        print(f"\n{machine(rows)}\n", flush=True)


def sides(against: str) -> list[str]:
    """Return the sides to measure, maxlm first."""
    if against == "auto":
        return list(SIDES) if find_spec("torch") else ["maxlm"]
    return ["maxlm"] if against in ("nothing", "maxlm") else ["maxlm", against]


if __name__ == "__main__":
    main()
