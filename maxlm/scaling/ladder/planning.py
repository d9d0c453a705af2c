"""`maxlm ladder`, plan and status: the table of a LADDER.yaml's runs.

What it imports is kept small, since the answer itself takes a tenth of a second.
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console

from maxlm.config.errors import UserError
from maxlm.config.ladder import LadderConfig
from maxlm.config.reading.loader import load_ladder
from maxlm.scaling.ladder.results import read_results, unique_tokens
from maxlm.scaling.ladder.rung import Rung
from maxlm.scaling.ladder.rungs import build_rungs
from maxlm.scaling.ladder.show.plan import plan_rows
from maxlm.scaling.runs import Runs, unidentified


def run(arguments: argparse.Namespace) -> int:
    """Print the table; return the exit code."""
    ladder = load_ladder(arguments.ladder)
    rungs = build_rungs(ladder)
    if arguments.action == "plan":
        _check(arguments.ladder, ladder, rungs)
    speed = arguments.tflops * 1e12 if arguments.tflops else None
    most = None if "repeated" in ladder.fit.laws else ladder.fit.most_epochs
    rows = plan_rows(read_results(ladder, rungs), unique_tokens(rungs[0].config), speed, most)
    console = Console(width=160, highlight=False, markup=False)
    console.print(f"\n{rows.title}")
    console.print(rows.rich())
    return 0


def _check(path: str, ladder: LadderConfig, rungs: list[Rung]) -> None:
    """Refuse runs of which no law could be made, before any of them is trained."""
    sizes = [rung.counted(ladder.fit.count) for rung in rungs]
    tokens = [rung.tokens for rung in rungs]
    if why := unidentified(Runs.of(sizes, tokens, np.ones(len(rungs)))):
        raise UserError(f"{path}: its runs {why} (without a law: maxlm ladder status)")
