"""`maxlm ladder`, run, fit and report: train the runs of a LADDER.yaml, and say what they tell.

`plan` and `status` are `maxlm.scaling.ladder.planning`, which loads less.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console

from maxlm.config import load_run
from maxlm.config.errors import UserError
from maxlm.config.ladder import LadderConfig
from maxlm.config.reading.loader import load_ladder
from maxlm.files import write_whole
from maxlm.metrics.prediction import to_json as prediction_to_json
from maxlm.scaling.ladder.fitted import (
    FittedLadder,
    LargestHeldOut,
    fit_ladder,
    hold_out_largest,
    read_fitted,
    to_json,
)
from maxlm.scaling.ladder.foretell import foretell
from maxlm.scaling.ladder.results import (
    Gathered,
    gather,
    loss_name,
    read_results,
    unique_tokens,
)
from maxlm.scaling.ladder.run import launch_ladder, run_ladder
from maxlm.scaling.ladder.rung import Rung
from maxlm.scaling.ladder.rungs import build_rungs
from maxlm.scaling.ladder.show import tables
from maxlm.scaling.ladder.show.charts import draw_all
from maxlm.scaling.ladder.show.curves import write_curves
from maxlm.scaling.ladder.show.page import render


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked with the ladder; return the exit code."""
    ladder = load_ladder(arguments.ladder)
    rungs = build_rungs(ladder)
    actions = {"run": _run, "fit": _fit, "report": _report}
    return actions[arguments.action](arguments, ladder, rungs)


def _run(arguments: argparse.Namespace, ladder: LadderConfig, rungs: list[Rung]) -> int:
    if arguments.launch:
        options = {"cluster": arguments.launch, "jobs": arguments.jobs}
        return launch_ladder(ladder, rungs, **options, say=_say)
    failed = run_ladder(ladder, rungs, jobs=arguments.jobs or 1, say=_say)
    if failed:
        _say(f"{len(failed)} rungs are not done: {', '.join(rung.name for rung in failed)}")
        _say("the same command tries them again")
        return 1
    _say(f"all rungs are done; next: maxlm ladder fit {arguments.ladder}")
    return 0


def _fit(arguments: argparse.Namespace, ladder: LadderConfig, rungs: list[Rung]) -> int:
    gathered = gather(ladder, read_results(ladder, rungs))
    loss = loss_name(ladder, rungs[0].config)
    fitted = fit_ladder(ladder, gathered, loss)
    _say_held_out(hold_out_largest(ladder, gathered, loss))
    shown = _tables(fitted, gathered)
    for one in shown:
        _show(one)
    path = Path(ladder.run_dir) / "fit.json"
    write_whole(path, json.dumps(to_json(fitted), indent=1).encode() + b"\n")
    charts = draw_all(fitted, gathered)
    write_curves(
        Path(ladder.run_dir) / "tensorboard", fitted, gathered, charts=charts, tables=shown
    )
    _say(f"fit: {path}; curves: tensorboard --logdir {ladder.run_dir}/tensorboard")
    if arguments.predict:
        _predict(arguments, ladder, fitted, gathered)
    return 0


def _say_held_out(held_out: LargestHeldOut | None) -> None:
    """Say first what counts: how well the largest budget is foretold by a ladder without it."""
    if held_out is None:
        _say("hold-out error: none; the budgets below the largest are too few for a fit")
        return
    errors = 100 * held_out.errors
    _say(
        f"hold-out error: the largest budget, predicted from the {held_out.fitted} smaller runs alone, is off by "
        f"{errors.mean():+.2f} % on average and {np.abs(errors).max():.2f} % at most; {held_out.inside} of "
        f"{len(errors)} runs lie in their interval (up to {100 * held_out.width:.1f} % wide)"
    )


def _predict(
    arguments: argparse.Namespace, ladder: LadderConfig, fitted: FittedLadder, gathered: Gathered
) -> None:
    config = load_run(arguments.predict, arguments.overrides).config
    unique = unique_tokens(config)
    prediction = foretell(fitted, gathered.results, config, unique)
    path = Path(arguments.output or Path(ladder.run_dir) / "prediction.json")
    if path.exists() and not arguments.output:
        raise UserError(f"{path} exists; name another file: --output FILE, or move it away")
    write_whole(path, json.dumps(prediction_to_json(prediction), indent=1).encode() + b"\n")
    final = prediction.final
    _say(
        f"{arguments.predict}: N={prediction.parameters:,}, D={prediction.tokens:,}: {prediction.loss} will be "
        f"{final.value:.4f} (90 %: {final.low:.4f} to {final.high:.4f})"
    )
    epochs = prediction.tokens / (unique or prediction.tokens)
    if epochs > ladder.fit.most_epochs and "repeated" not in ladder.fit.laws:
        _say(
            f"it reads its data {epochs:.1f} times, as if all were new to the laws {', '.join(ladder.fit.laws)}: it "
            "will be worse; fit.laws=[repeated] knows what repeated data are worth"
        )
    _say(f"shown beside the run with: maxlm train {arguments.predict} metrics.prediction={path}")


def _report(arguments: argparse.Namespace, ladder: LadderConfig, rungs: list[Rung]) -> int:
    fitted = read_fitted(Path(ladder.run_dir) / "fit.json")
    gathered = gather(ladder, read_results(ladder, rungs))
    if gathered.runs.number != fitted.runs:
        raise UserError(
            f"{ladder.run_dir}/fit.json is a fit to {fitted.runs} runs and {gathered.runs.number} can be used now; "
            f"fit again: maxlm ladder fit {arguments.ladder}"
        )
    folder = Path(ladder.run_dir)
    shown = _tables(fitted, gathered)
    page = render(arguments.ladder, draw_all(fitted, gathered), shown, gathered, folder)
    write_whole(folder / "report.html", page.encode())
    _say(f"{folder / 'report.html'}")
    return 0


def _tables(fitted: FittedLadder, gathered: Gathered) -> list[tables.Rows]:
    budgets = [fitted.largest_flops * factor for factor in (1, 10, 100)]
    return [
        tables.law_rows(fitted),
        tables.held_out_rows(fitted),
        tables.number_rows(fitted),
        tables.optimum_rows(fitted, budgets),
        *tables.isoflop_rows(gathered),
        tables.residual_rows(fitted, gathered),
    ]


def _show(rows: tables.Rows) -> None:
    console = Console(width=160, highlight=False, markup=False)
    console.print(f"\n{rows.title}")
    console.print(rows.rich())


def _say(text: str) -> None:
    print(text, flush=True)
