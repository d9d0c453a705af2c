"""A ladder's charts: the frontier, loss over size at each budget, residuals, predicted against
measured.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter, StrMethodFormatter

from maxlm.config.errors import UserError
from maxlm.pages.chart import Chart
from maxlm.scaling.ladder.fitted import FittedLadder, Range
from maxlm.scaling.ladder.results import Gathered

INK, LAW, BAND = "#333333", "#c44e52", "#e8b4b6"


def draw_all(fitted: FittedLadder, gathered: Gathered) -> list[Chart]:
    """Return every chart of a fitted ladder."""
    return [
        _frontier(fitted, gathered),
        _isoflop(fitted, gathered),
        _residuals(fitted, gathered),
        _measured(fitted, gathered),
    ]


def frontier(fitted: FittedLadder) -> tuple[np.ndarray, np.ndarray]:
    """Return budgets, and (loss, low, high) of the best use of each, (budgets, 3); without those of
    which the law names no best use.
    """
    budgets, found = list[float](), list[Range]()
    for flops in np.geomspace(fitted.largest_flops / 1e3, fitted.largest_flops * 1e2, 21):
        try:
            found.append(fitted.best_at(float(flops))["loss"])
        except UserError:
            continue
        budgets.append(float(flops))
    return np.array(budgets), np.array(found).reshape(-1, 3)


def _frontier(fitted: FittedLadder, gathered: Gathered) -> Chart:
    figure, axes = _axes("FLOPs", "loss")
    sizes = gathered.runs.parameters
    for size in np.unique(sizes):
        of_size = np.flatnonzero(sizes == size)
        order = of_size[np.argsort(gathered.flops[of_size])]
        points = gathered.flops[order], gathered.runs.losses[order]
        axes.plot(*points, marker="o", linewidth=0.8, label=f"N={size:.3g}")
    budgets, losses = frontier(fitted)
    axes.fill_between(budgets, losses[:, 1], losses[:, 2], color=BAND, alpha=0.6, linewidth=0)
    axes.plot(budgets, losses[:, 0], color=LAW, label="best use of a budget")
    axes.legend(fontsize=8)
    return Chart("frontier", "Loss of the rungs, and the best that each budget can buy.", figure)


def _isoflop(fitted: FittedLadder, gathered: Gathered) -> Chart:
    figure, axes = _axes("N", "loss")
    for number, budget in enumerate(np.unique(gathered.budgets)):
        of_budget = np.flatnonzero(gathered.budgets == budget)
        runs, color = gathered.runs.only(of_budget), f"C{number % 10}"
        axes.plot(runs.parameters, runs.losses, "o", color=color, label=f"{budget:.3g}")
        ends = runs.parameters.min() / 2, runs.parameters.max() * 2
        sizes = np.geomspace(*ends, 60)
        tokens = np.exp(_interpolated(np.log(sizes), runs.parameters, runs.tokens))
        axes.plot(sizes, fitted.fit.predict(sizes, tokens), color=color, linewidth=0.8)
    axes.legend(title="budget", fontsize=8)
    return Chart("isoflop", "Loss over model size at each budget; lines are the law.", figure)


def _interpolated(wanted: np.ndarray, sizes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return log tokens at other sizes of a budget: a straight line in logarithms."""
    if len(set(sizes)) < 2:
        return np.full(len(wanted), np.log(tokens[0]))
    return np.polyval(np.polyfit(np.log(sizes), np.log(tokens), 1), wanted)


def _residuals(fitted: FittedLadder, gathered: Gathered) -> Chart:
    figure, axes = _axes("FLOPs", "law / measured - 1, %")
    axes.set_yscale("linear")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.plot(gathered.flops, 100 * np.expm1(fitted.fit.residuals), "o", color=LAW)
    return Chart("residuals", "How far each rung lies from the law.", figure)


def _measured(fitted: FittedLadder, gathered: Gathered) -> Chart:
    figure, axes = _axes("measured loss", "loss by the law")
    losses = gathered.runs.losses
    ends = losses.min() * 0.98, losses.max() * 1.02
    axes.plot(ends, ends, color=INK, linewidth=0.8)
    axes.plot(losses, losses * np.exp(fitted.fit.residuals), "o", color=LAW)
    return Chart("measured", "The law's loss against the measured one.", figure)


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
    for axis in (axes.yaxis, *([axes.xaxis] if "loss" in across else [])):  # less than a decade
        axis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
        axis.set_minor_formatter(StrMethodFormatter("{x:.3g}"))
    axes.grid(visible=True, which="major", linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
