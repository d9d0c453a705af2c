"""`maxlm optimal --flops 1e21`: the model size and the tokens that make the most of a budget."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from maxlm.config.errors import UserError
from maxlm.devices import DEVICES, Device
from maxlm.scaling.ladder.fitted import Range, published, read_fitted
from maxlm.scaling.optimum import best_size


def run(arguments: argparse.Namespace) -> int:
    """Print the best use of the budget; return the exit code."""
    _check(arguments)
    device = _device(arguments.device) if arguments.device else None
    if arguments.ladder:
        fitted = read_fitted(Path(arguments.ladder))
        best = fitted.best_at(arguments.flops)
        counted = ", N without embeddings" if fitted.counts == "non_embedding" else ""
        source = f"{arguments.ladder}{counted}"
    else:
        try:
            found = best_size(published(arguments.law), arguments.flops)
        except ValueError:
            raise UserError(
                f"--flops={arguments.flops:g} is too little or too much for the published law; give 1e12 to 1e30"
            ) from None
        names = ("parameters", "tokens", "tokens_per_parameter", "loss")
        best = {name: Range(getattr(found, name), math.nan, math.nan) for name in names}
        source = f"the published law ({arguments.law})"
    print(f"{arguments.flops:.3g} FLOPs by {source}:")
    labels = {"parameters": "N", "tokens": "D", "tokens_per_parameter": "D/N", "loss": "loss"}
    for name, label in labels.items():
        print(f"  {label:<5} {_shown(best[name])}")
    steps = best["tokens"].value / arguments.batch_tokens
    print(f"  steps {steps:,.0f} of {arguments.batch_tokens:,} tokens")
    if device is not None and device.bfloat16:
        rate = arguments.devices * device.bfloat16 * arguments.mfu
        hours = arguments.flops / rate / 3600
        about = f"{arguments.devices} x {device.name} at {100 * arguments.mfu:g} % of their bfloat16 peak"
        print(f"  hours {hours:,.1f} on {about}")
    return 0


def _shown(one: Range) -> str:
    interval = "" if math.isnan(one.low) else f"   (90 %: {one.low:.4g} to {one.high:.4g})"
    return f"{one.value:.4g}{interval}"


def _device(name: str) -> Device:
    known = {row.name.lower(): row for row in DEVICES if row.bfloat16}
    if name.lower() not in known:
        raise UserError(
            f"--device={name} is not known; use one of {', '.join(r.name for r in known.values())}"
        )
    return known[name.lower()]


def _check(arguments: argparse.Namespace) -> None:
    problems = []
    if not 1e6 <= arguments.flops < math.inf:
        problems.append(f"--flops={arguments.flops} must be 1e6 or more")
    if arguments.batch_tokens < 1 or arguments.devices < 1:
        problems.append("--batch-tokens and --devices must be at least 1")
    if not 0 < arguments.mfu <= 1:
        problems.append(f"--mfu={arguments.mfu} must be above 0 and at most 1")
    if problems:
        raise UserError("; ".join(problems))
