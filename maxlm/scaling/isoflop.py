"""IsoFLOP parabolas, the second approach of Hoffmann et al. (arXiv:2203.15556, section 3.2).

For each budget, a parabola through loss over log N; its lowest point is the best size; the best
sizes are a power of the budget. Kept for comparison: a parabola is only right near its lowest point,
so sizes that are not centred on it move it (the surface of `maxlm.scaling.laws` has no such bias).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from maxlm.scaling.runs import Runs

LEAST_SIZES = 3


class Parabola(NamedTuple):
    """Loss over log N at one budget.

    Attributes:
      flops: the budget.
      coefficients: of the squares, the log N, and 1.
      best: N at the lowest point, nan where the parabola opens downwards.
      loss: there.
      inside: whether the lowest point lies between the sizes that were trained.
    """

    flops: float
    coefficients: tuple[float, float, float]
    best: float
    loss: float
    inside: bool


class IsoFlop(NamedTuple):
    """What parabolas say together: best N = factor x C^power."""

    parabolas: tuple[Parabola, ...]
    factor: float
    power: float


def parabolas(runs: Runs, flops: np.ndarray, *, tolerance: float = 0.1) -> list[Parabola]:
    """Fit a parabola to each budget that has three sizes or more.

    Args:
      runs: sizes, tokens and losses.
      flops: what each run spent.
      tolerance: budgets that differ by no more than this, in log FLOPs, are one.
    """
    groups = _groups(np.log(flops), tolerance)
    return [
        _parabola(runs.only(group), float(np.exp(np.log(flops[group]).mean())))
        for group in groups
        if len(set(runs.parameters[group])) >= LEAST_SIZES
    ]


def fit_isoflop(runs: Runs, flops: np.ndarray) -> IsoFlop:
    """Return the power of the budget with which the parabolas' best sizes grow.

    Raises:
      ValueError: fewer than two budgets have three sizes and a lowest point.
    """
    found = parabolas(runs, flops)
    usable = [one for one in found if np.isfinite(one.best)]
    if len(usable) < 2:
        raise ValueError(
            f"{len(usable)} budgets have {LEAST_SIZES} sizes around a lowest loss; isoFLOP parabolas need two"
        )
    budgets, sizes = (np.log([getattr(one, name) for one in usable]) for name in ("flops", "best"))
    power, factor = np.polyfit(budgets, sizes, 1)
    return IsoFlop(tuple(found), float(np.exp(factor)), float(power))


def _parabola(runs: Runs, flops: float) -> Parabola:
    sizes = np.log(runs.parameters)
    square, slope, constant = np.polyfit(sizes, runs.losses, 2)
    lowest = -slope / (2 * square) if square > 0 else np.nan
    inside = bool(sizes.min() <= lowest <= sizes.max())
    loss = float(np.polyval((square, slope, constant), lowest))
    coefficients = (float(square), float(slope), float(constant))
    return Parabola(flops, coefficients, float(np.exp(lowest)), loss, inside)


def _groups(values: np.ndarray, tolerance: float) -> list[np.ndarray]:
    """Return the indices of values that lie together, smallest values first."""
    order = np.argsort(values, kind="stable")
    borders = np.flatnonzero(np.diff(values[order]) > tolerance) + 1
    return list(np.split(order, borders))
