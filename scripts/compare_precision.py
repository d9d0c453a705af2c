"""Compare what runs in fewer bits lose: maxlm's and transformers', to transformers' logits in fp32.

    .venv/bin/python scripts/compare_precision.py FOLDER [NAME ...]

FOLDER is what scripts/make_precision_logits.py wrote. For each model and dtype a line with KL(fp32 ||
fewer bits), over all positions of all prompts and weights:

* `nats`: the mean of transformers' run with eager attention
* `mean`, `median`: maxlm's mean and median, over those
* `low`, `high`: between which 90 % of the means' ratios lie when prompts are drawn anew (bootstrap)
* `sdpa`: what `mean` is for transformers' own run with its other attention: the noise of roundings
* `jumps`: positions with more than 30 times the median, of maxlm's, the eager and the other run. Where
  a router's scores are about equal, rounding decides which expert a token goes to, and such a position
  has a hundred times the loss: whose these are is chance
* `calm`: maxlm's mean over transformers' without positions at or behind the first jump, of any run, in
  their prompt
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

import maxlm

DTYPES = ("bfloat16", "float16")
JUMP = 30
DRAWS = 2000


class Line(NamedTuple):
    """What is printed of one model in one dtype."""

    nats: float
    mean: float
    median: float
    low: float
    high: float
    sdpa: float
    jumps: str
    calm: float


def main(folder: str, *names: str) -> None:
    found = {path.parent for path in Path(folder).glob("*/logits.safetensors")}
    known = sorted({path.name.rpartition("-")[0] for path in found})
    print(f"{'model':14} {'dtype':9}", *(f"{name:>9}" for name in Line._fields))
    for name in names or known:
        folders = sorted(path for path in found if path.name.rpartition("-")[0] == name)
        for dtype in DTYPES:
            line = compare(folders, dtype)
            shown = (f"{x:9.3g}" if isinstance(x, float) else f"{x:>9}" for x in line)
            print(f"{name:14} {dtype:9}", *shown, flush=True)


def compare(folders: list[Path], dtype: str) -> Line:
    """Return the line of a model with several weights."""
    runs: dict[str, list[np.ndarray]] = {}
    for folder in folders:
        expected = load_file(folder / "logits.safetensors")
        model = maxlm.load(folder, dtype=dtype)
        logits = {
            "maxlm": np.stack([model.logits(row) for row in expected["tokens"]]),
            "eager": expected[f"logits_{dtype}_eager"],
            "sdpa": expected.get(f"logits_{dtype}_sdpa"),
        }
        for name, low in logits.items():
            if low is not None:
                runs.setdefault(name, []).append(divergence(expected["logits_float32"], low))
    lost = {name: np.concatenate(rows) for name, rows in runs.items()}
    ours, theirs = lost["maxlm"], lost["eager"]
    jumped = {name: rows > JUMP * np.median(rows) for name, rows in lost.items()}
    calm = ~np.logical_or.accumulate(np.any(list(jumped.values()), axis=0), axis=1)
    low, high = np.quantile(redrawn(ours, theirs), (0.05, 0.95))
    return Line(
        nats=float(theirs.mean()),
        mean=float(ours.mean() / theirs.mean()),
        median=float(np.median(ours) / np.median(theirs)),
        low=float(low),
        high=float(high),
        sdpa=float(lost["sdpa"].mean() / theirs.mean()) if "sdpa" in lost else float("nan"),
        jumps="/".join(str(rows.sum()) for rows in jumped.values()),
        calm=float(ours[calm].mean() / theirs[calm].mean()),
    )


def redrawn(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the ratio of means of prompts that are drawn with replacement, many times."""
    drawn = np.random.default_rng(0).integers(0, len(ours), (DRAWS, len(ours)))
    ratios: np.ndarray = ours.mean(axis=1)[drawn].sum(axis=1) / theirs.mean(axis=1)[drawn].sum(
        axis=1
    )
    return ratios


def divergence(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return KL(wanted || found) in nats of every position, fp64 (prompts, T)."""
    p, q = log_softmax(wanted), log_softmax(found)
    terms: np.ndarray = (np.exp(p) * (p - q)).sum(axis=-1)
    return terms


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log probabilities in fp64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normal: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normal


if __name__ == "__main__":
    main(*sys.argv[1:])
