"""One HTML page of a coordinate check: a chart for each step, and every line as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from maxlm.files import write_whole
from maxlm.scaling.coordcheck.judge import CHANGE, Line
from maxlm.scaling.ladder.show.charts import Chart
from maxlm.scaling.ladder.show.page import page_of
from maxlm.scaling.ladder.show.tables import Rows


def rows_of(lines: Sequence[Line], widths: Sequence[int], tolerance: float) -> Rows:
    """Return the lines as a table, those that are not flat marked."""
    columns = ("layer", "of", "step", *(f"width {width}" for width in widths), "growth", "")
    rows = []
    for line in lines:
        verdict = "" if not line.judged else "flat" if line.is_flat(tolerance) else "NOT FLAT"
        sizes = (f"{size:.4g}" for size in line.sizes)
        growth = f"{line.growth:.2f}x"
        rows.append((line.layer, line.kind, str(line.step), *sizes, growth, verdict))
    title = (
        f"root mean squares; growth from width {widths[0]} to {widths[-1]} by a line through all"
    )
    return Rows(title, columns, tuple(rows))


def draw(lines: Sequence[Line], widths: Sequence[int]) -> list[Chart]:
    """Return a chart for each step: activations as full lines, changes as broken ones."""
    charts = []
    for step in sorted({line.step for line in lines}):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel="embed_dim", ylabel="root mean square")
        layers = list(dict.fromkeys(line.layer for line in lines))
        for line in lines:
            if line.step == step:
                style = "--" if line.kind == CHANGE else "-"
                label = f"{line.layer}, {line.kind}"
                color = f"C{layers.index(line.layer) % 10}"
                axes.plot(widths, line.sizes, style, marker="o", color=color, label=label)
        axes.set_xticks(list(widths), [str(width) for width in widths])
        axes.minorticks_off()
        axes.grid(visible=True, which="major", linewidth=0.3)
        axes.legend(fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        charts.append(Chart(f"step_{step}", f"After {step} steps.", figure))
    return charts


def write_page(path: Path, title: str, charts: Sequence[Chart], rows: Rows) -> None:
    """Write the page; it needs no network and no script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page_of(title, charts, [rows]).encode())
