"""Measure generation: tokens/s of `maxlm.load(...).generate`, which `maxlm generate` prints from, beside
transformers' `generate`, on the CPU, of the same weights.

    .venv/bin/pip install -e '.[parity]' && .venv/bin/python scripts/bench_generate.py --rounds 5

The weights are random, of Llama's shape, written once by transformers and read by both. Each side is a
process of its own. Both choose the likeliest token each time, in fp32, and nine in ten must be the
same on both sides, or the comparison is refused. Then they take turns, in changing order; a ratio is
the median over rounds. What a side does once, such as compiling, comes before. Texts end after a
fixed number of tokens, and no token ends one before.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
SHAPES = {
    "26 M": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1408,
        "vocab_size": 4096,
    },
    "135 M": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
    },
}
"""The second is SmolLM2's smallest."""
NUM_TEXTS = (1, 16)
PROMPT, NEW = 64, 128
"""Tokens of a prompt, and of what follows it."""
Texts = list[list[int]]


SIDES = ("maxlm", "transformers")


def serve(generate: Callable[[Texts], Texts]) -> None:
    """Answer each line of stdin, prompts, with one JSON line: what follows them, and the seconds."""
    for line in sys.stdin:
        prompts = json.loads(line)
        began = time.perf_counter()
        texts = generate(prompts)
        print(json.dumps({"seconds": time.perf_counter() - began, "texts": texts}), flush=True)


class Side:
    """One process that generates."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, str(FOLDER / f"bench_generate_{name}.py"), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def generate(self, prompts: Texts) -> tuple[float, Texts]:
        """Return the seconds it took, and what follows the prompts."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(prompts) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}")
        found = json.loads(answer)
        return found["seconds"], found["texts"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(sides: list[Side], prompts: Texts, rounds: int) -> list[list[float]]:
    """Return the seconds of each side in each round.

    Raises:
      SystemExit: more than a tenth of the tokens differ.
    """
    first, second = (side.generate(prompts)[1] for side in sides)
    same = np.mean(np.asarray(first) == np.asarray(second))
    # Two numbers that are nearly as likely may change places, and then the text is another.
    if same < 0.9:
        raise SystemExit(f"only {same:.0%} of the tokens are the same on both sides")
    seconds: list[list[float]] = [[], []]
    for round_ in range(rounds):
        for place in (0, 1) if round_ % 2 == 0 else (1, 0):
            seconds[place].append(sides[place].generate(prompts)[0])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("| model | texts | maxlm tokens/s | transformers tokens/s | maxlm's speed over it |")
    print("|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            writer = [sys.executable, str(FOLDER / "bench_generate_transformers.py"), folder]
            subprocess.run([*writer, json.dumps(shape)], check=True)
            sides = [Side(side, Path(folder)) for side in SIDES]
            for num_texts in NUM_TEXTS:
                rng = np.random.default_rng(num_texts)
                prompts = rng.integers(3, shape["vocab_size"], (num_texts, PROMPT)).tolist()
                ours, theirs = measure(sides, prompts, arguments.rounds)
                speeds = [num_texts * NEW / statistics.median(times) for times in (ours, theirs)]
                ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
                ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
                print(f"| {name} | {num_texts} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | {ratio} |")
            for side in sides:
                side.close()
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch", "transformers"))
    print(
        f"\n{dt.date.today()}, {os.cpu_count()} CPU cores, {versions}, {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
