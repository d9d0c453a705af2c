"""`maxlm ladder`, plan and status: the table of a LADDER.yaml's runs.

What it imports is kept small, since the answer itself takes a tenth of a second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from maxlm.config.reading.loader import load_ladder
from maxlm.data.shards import TokenShards
from maxlm.scaling.ladder.results import read_results
from maxlm.scaling.ladder.rung import Rung
from maxlm.scaling.ladder.rungs import build_rungs
from maxlm.scaling.ladder.show.plan import plan_rows


def run(arguments: argparse.Namespace) -> int:
    """Print the table; return the exit code."""
    ladder = load_ladder(arguments.ladder)
    rungs = build_rungs(ladder)
    speed = arguments.tflops * 1e12 if arguments.tflops else None
    rows = plan_rows(read_results(ladder, rungs), _unique_tokens(rungs[0]), speed)
    console = Console(width=160, highlight=False, markup=False)
    console.print(f"\n{rows.title}")
    console.print(rows.rich())
    return 0


def _unique_tokens(rung: Rung) -> float | None:
    """Return the training tokens of the source that lasts shortest, None if it is not prepared."""
    sources = rung.config.data.sources.values()
    total = sum(source.weight for source in sources)
    lengths = []
    for source in sources:
        folder = Path(source.path) / "train"
        if not folder.is_dir():
            return None
        lengths.append(TokenShards(folder).num_tokens * total / source.weight)
    return min(lengths)
