"""A ladder's tables, for the terminal, TensorBoard and the page: rows of text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maxlm.pages import Rows
from maxlm.scaling.ladder.fitted import FittedLadder, Range
from maxlm.scaling.ladder.results import Gathered, Result
from maxlm.scaling.ladder.rung import Rung


def plan_rows(results: Sequence[Result], unique_tokens: float | None, speed: float | None) -> Rows:
    """Return what is to be run.

    Args:
      results: every rung and how far it is.
      unique_tokens: training tokens of the data, where it is prepared.
      speed: FLOP/s of the machine, for hours.
    """
    sizes = ("rung", "N", "N without embeddings", "tokens", "D/N", "epochs", "steps", "FLOPs")
    branches = any(result.rung.after for result in results)
    columns = (*sizes, *(("from",) if branches else ()), *(("hours",) if speed else ()), "state")
    rows = []
    for result in results:
        rung = result.rung
        start = (f"{rung.after.name}, step {rung.start:,}" if rung.after else "",)
        hours = (f"{rung.own_flops / speed / 3600:.3f}",) if speed else ()
        cells = (*_rung_cells(rung, unique_tokens), *(start if branches else ()), *hours)
        rows.append((*cells, _state(result)))
    total = sum(result.rung.own_flops for result in results)
    summary = f"{len(results)} runs, {total:.2e} FLOPs"
    summary += f", {total / speed / 3600:.1f} hours" if speed else ""
    return Rows(summary, columns, tuple(rows))


def _rung_cells(rung: Rung, unique_tokens: float | None) -> tuple[str, ...]:
    epochs = "?" if unique_tokens is None else f"{rung.tokens / unique_tokens:.2f}"
    return (
        rung.name,
        f"{rung.parameters:,}",
        f"{rung.parameters - rung.embedding:,}",
        f"{rung.tokens:.3g}",
        f"{rung.tokens / rung.parameters:.1f}",
        epochs,
        f"{rung.config.train.num_steps:,}",
        f"{rung.flops:.2e}",
    )


def _state(result: Result) -> str:
    if result.state == "begun":
        return f"step {result.step}"
    if result.state == "done":
        return f"loss {result.loss:.4f}"
    return result.state


def number_rows(fitted: FittedLadder) -> Rows:
    """Return the law's numbers with their intervals."""
    rows = [(name, *map(_number, one)) for name, one in fitted.numbers().items()]
    law = fitted.fit.law
    title = f"{law.name} ({law.paper}), fitted to {fitted.runs} runs"
    return Rows(title, ("number", "value", "5 %", "95 %"), tuple(rows))


def held_out_rows(fitted: FittedLadder) -> Rows:
    """Return how well larger budgets were predicted from smaller ones."""
    rows = [
        (
            f"{one.flops:.3g}",
            str(one.fitted),
            *(f"{100 * error:+.2f} %" for error in _ends(one.errors)),
        )
        for one in fitted.held_out
    ]
    columns = ("budget", "runs fitted", "mean error", "largest error")
    return Rows("budgets predicted from the smaller ones alone", columns, tuple(rows))


def _ends(errors: np.ndarray) -> tuple[float, float]:
    return float(errors.mean()), float(errors[np.abs(errors).argmax()])


def optimum_rows(fitted: FittedLadder, budgets: Sequence[float]) -> Rows:
    """Return the best size, tokens and loss of each budget."""
    rows = []
    for flops in budgets:
        best = fitted.best_at(flops)
        cells = (_range(best[name]) for name in ("parameters", "tokens", "tokens_per_parameter"))
        rows.append((f"{flops:.2e}", *cells, _range(best["loss"], digits=4)))
    columns = ("FLOPs", "best N", "best D", "D/N", "loss")
    return Rows("compute-optimal (90 % intervals)", columns, tuple(rows))


def residual_rows(fitted: FittedLadder, gathered: Gathered) -> Rows:
    """Return measured and fitted loss of each rung, and the rungs that were left out."""
    rows = []
    for result, residual in zip(gathered.results, fitted.fit.residuals, strict=True):
        loss = float(result.loss or 0)
        predicted = loss * float(np.exp(residual))
        rows.append(
            (
                result.rung.name,
                f"{loss:.4f}",
                f"{predicted:.4f}",
                f"{100 * np.expm1(residual):+.2f} %",
            )
        )
    rows += [(result.rung.name, "-", "-", f"left out: {why}") for result, why in gathered.left_out]
    return Rows("rungs", ("rung", "measured", "law", "difference"), tuple(rows))


def _range(one: Range, digits: int = 3) -> str:
    return f"{one.value:.{digits}g} ({one.low:.{digits}g} to {one.high:.{digits}g})"


def _number(value: float) -> str:
    return f"{value:.6g}"
