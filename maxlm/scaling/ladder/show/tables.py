"""A ladder's tables, for the terminal, TensorBoard and the page: rows of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from maxlm.config.errors import UserError
from maxlm.pages import Rows
from maxlm.scaling.isoflop import fit_isoflop, parabolas
from maxlm.scaling.ladder.fitted import FittedLadder, Range
from maxlm.scaling.ladder.results import Gathered
from maxlm.scaling.select import DRIFTS


def number_rows(fitted: FittedLadder) -> Rows:
    """Return the law's numbers with their intervals."""
    rows = [(name, *map(_number, one)) for name, one in fitted.numbers().items()]
    law = fitted.fit.law
    title = f"{law.name} ({law.paper}), fitted to {fitted.runs} runs"
    return Rows(title, ("number", "value", "5 %", "95 %"), tuple(rows))


def law_rows(fitted: FittedLadder) -> Rows:
    """Return how much each law is believed, and why."""
    rows = []
    for law in fitted.laws:
        score = f"{100 * law.score:.2f} %" if np.isfinite(law.score) else "none"
        drifts = np.interp([0.5, 0.95], np.cumsum(law.drifts), DRIFTS)
        cells = (f"{100 * law.noise:.2f} %", *(f"{100 * drift:.2f} %" for drift in drifts))
        rows.append((law.fit.law.name, f"{100 * law.weight:.1f} %", score, *cells))
    columns = ("law", "weight", "rollouts, rms", "runs about it", "drift, median", "95 %")
    title = "laws; drift: error per factor of e in FLOPs beyond the largest run, besides what bootstraps explain"
    return Rows(title, columns, tuple(rows))


def held_out_rows(fitted: FittedLadder) -> Rows:
    """Return how well the heaviest law predicted larger budgets from smaller ones."""
    rows = [
        (
            f"{one.flops:.3g}",
            f"{one.flops / one.largest:.2f}",
            str(one.fitted),
            *(f"{100 * error:+.2f} %" for error in _ends(one.errors)),
        )
        for one in fitted.laws[0].rollouts
    ]
    columns = ("FLOPs", "of the largest fitted", "runs fitted", "mean error", "largest error")
    return Rows("budgets predicted from smaller ones alone", columns, tuple(rows))


def _ends(errors: np.ndarray) -> tuple[float, float]:
    return float(errors.mean()), float(errors[np.abs(errors).argmax()])


def optimum_rows(fitted: FittedLadder, budgets: Sequence[float]) -> Rows:
    """Return the best size, tokens and loss of each budget; without, where the law names none."""
    title, rows = "compute-optimal (90 % intervals)", []
    for flops in budgets:
        try:
            best = fitted.best_at(flops)
        except UserError as error:
            title = f"compute-optimal: {error}"
            continue
        cells = (_range(best[name]) for name in ("parameters", "tokens", "tokens_per_parameter"))
        rows.append((f"{flops:.2e}", *cells, _range(best["loss"], digits=4)))
    columns = ("FLOPs", "best N", "best D", "D/N", "loss")
    return Rows(title, columns, tuple(rows))


def isoflop_rows(gathered: Gathered) -> Iterator[Rows]:
    """Yield the best size of each budget by a parabola through its runs, to compare with the law;
    nothing where no budget of FLOPs has sizes enough.
    """
    found = parabolas(gathered.runs, gathered.flops)
    if not found:
        return
    try:
        power = f"best N grows as C^{fit_isoflop(gathered.runs, gathered.flops).power:.3f}"
    except ValueError as error:
        power = str(error)
    rows = [
        (
            f"{one.flops:.2e}",
            *((f"{one.best:.3g}", f"{one.loss:.4f}") if np.isfinite(one.best) else ("none", "")),
            "yes" if one.inside else "no",
        )
        for one in found
    ]
    columns = ("FLOPs", "best N", "loss", "between the sizes")
    yield Rows(f"isoFLOP parabolas (biased off their centre): {power}", columns, tuple(rows))


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
