"""A run's curves: loss with what happened, learning rate, gradient norm, throughput, progress."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from maxlm.metrics.history.events import Happened
from maxlm.metrics.history.goodput import Span
from maxlm.pages import visible
from maxlm.pages.chart import Chart
from maxlm.report.record import BEGINNINGS, RunRecord

TRAIN, VALIDATION = "#4c72b0", ("#c44e52", "#55a868", "#8172b3", "#ccb974", "#64b5cd")
MARKS = {"WARNING": "#dd8452", "ERROR": "#c44e52", "resume": "#999999"}
MOST_POINTS = 1200
MOST_MARKS = 200


def draw_all(run: RunRecord) -> list[Chart]:
    """Return the charts that there is something for."""
    with rc_context({"font.size": 10}):
        drawn = [
            _loss(run),
            _curve(run, "optim/learning_rate", "Learning rate."),
            _curve(run, "optim/gradient_norm", "Norm of the gradient before clipping."),
            _curve(run, "throughput/tokens_per_second", "Tokens per second, of all devices."),
            _progress(run),
        ]
    return [chart for chart in drawn if chart is not None]


def incidents(events: Sequence[Happened]) -> list[Happened]:
    """Return what is worth a mark in a curve: warnings, errors and restarts, with a step."""
    return [
        event
        for event in events
        if event.step is not None and (event.level in MARKS or event.kind == "resume")
    ]


def _loss(run: RunRecord) -> Chart | None:
    curves = {"train/loss": TRAIN}
    names = run.names("val/.*/loss")
    curves |= {name: VALIDATION[i % len(VALIDATION)] for i, name in enumerate(names)}
    points = {name: run.column(name) for name in curves}
    if not any(steps for steps, _ in points.values()):
        return None
    figure, axes = _axes("step", "nats per token")
    for name, (steps, values) in points.items():
        if steps:
            style = {"linewidth": 1.0} if name == "train/loss" else {"marker": "o", "markersize": 3}
            label = visible(name.removesuffix("/loss"))
            axes.plot(*_thinned(steps, values), color=curves[name], label=_plain(label), **style)  # type: ignore[arg-type]
    marks = incidents(run.events)[-MOST_MARKS:]
    for event in marks:
        color = MARKS[event.level if event.level in MARKS else "resume"]
        axes.axvline(event.step or 0, color=color, linewidth=1.1, linestyle=":", zorder=0)
    for level, label in (("ERROR", "errors"), ("WARNING", "warnings"), ("resume", "restarts")):
        if any((event.level if event.level in MARKS else "resume") == level for event in marks):
            axes.plot([], [], color=MARKS[level], linestyle=":", label=label)
    _fit_to_values(axes, [value for _, values in points.values() for value in values])
    axes.legend(edgecolor="none", framealpha=0.9, fontsize=9)
    meaning = "Loss; dotted lines are what happened, as listed below."
    return Chart("loss", meaning, figure)


def _fit_to_values(axes: Axes, values: Sequence[float]) -> None:
    """Draw a loss in logarithms where it spans more than a decade."""
    finite = [value for value in values if math.isfinite(value) and value > 0]
    if finite and max(finite) > 10 * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _curve(run: RunRecord, name: str, meaning: str) -> Chart | None:
    steps, values = run.column(name)
    if not any(math.isfinite(value) for value in values):
        return None
    figure, axes = _axes("step", name)
    axes.plot(*_thinned(steps, values), color=TRAIN, linewidth=1.0)
    if name == "optim/gradient_norm":
        _fit_to_values(axes, values)
    return Chart(name, meaning, figure)


def _progress(run: RunRecord) -> Chart | None:
    """Draw steps over hours: level where nothing went on, back where steps were done again."""
    points = _steps_over_time(run.spans)
    if len(points) < 2:
        return None
    first = points[0][0]
    seconds = max(points[-1][0] - first, 1e-9)
    unit, size = next(
        (unit, size)
        for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
        if seconds > 2 * size or size == 1
    )
    figure, axes = _axes(f"{unit} since the run was created", "steps done")
    kept = points[:: len(points) // MOST_POINTS + 1]
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    axes.plot(
        [(time - first) / size for time, _ in kept],
        [step for _, step in kept],
        color=TRAIN,
        linewidth=1.0,
    )
    for event in run.events:
        if event.kind in BEGINNINGS:
            axes.axvline((event.time - first) / size, color=MARKS["resume"], linewidth=0.8, ls=":")
    axes.set_xlim(left=0)
    meaning = "Steps over time; dotted lines are starts. It falls where steps are done again."
    return Chart("progress", meaning, figure)


def _steps_over_time(spans: Sequence[Span]) -> list[tuple[float, int]]:
    """Return (clock, steps done) at the end of each span, and at the beginning of each start."""
    points, step, start = list[tuple[float, int]](), 0, 0
    for span in spans:
        if span.start != start:
            points.append((span.time - sum(span.spent.values()), step))
        start, step = span.start, step if span.step is None else span.step
        points.append((span.time, step))
    return points


def _thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Return at most about MOST_POINTS points: of each stretch the lowest and the highest."""
    if len(steps) <= MOST_POINTS:
        return list(steps), list(values)
    kept: set[int] = {0, len(steps) - 1}
    figures = np.asarray(values, float)
    for stretch in np.array_split(np.arange(len(steps)), MOST_POINTS // 2):
        of_stretch = figures[stretch]
        if np.isfinite(of_stretch).any():
            kept |= {int(stretch[np.nanargmin(of_stretch)]), int(stretch[np.nanargmax(of_stretch)])}
        else:
            kept.add(int(stretch[0]))
    order = sorted(kept)
    return [steps[index] for index in order], [values[index] for index in order]


def _plain(text: str) -> str:
    """Return a text that the drawing library does not take for a formula, nor leaves out."""
    return text.replace("$", r"\$").removeprefix("_")


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=across, ylabel=up)
    axes.grid(visible=True, which="major", linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
