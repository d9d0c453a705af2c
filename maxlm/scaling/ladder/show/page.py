"""One HTML page of a ladder: charts, tables, every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maxlm.pages import (
    Markup,
    Rows,
    escaped,
    figures_markup,
    page_markup,
    table_markup,
)
from maxlm.pages.chart import Chart
from maxlm.scaling.ladder.results import Gathered


def render(
    title: str, charts: Sequence[Chart], tables: Sequence[Rows], gathered: Gathered, folder: Path
) -> str:
    """Return the page.

    Args:
      title: of the page.
      charts: drawn one beside the other.
      tables: one below the other.
      gathered: the runs, each linked by a path relative to `folder`.
      folder: where the page will be.
    """
    return page_of(title, charts, tables, _links(gathered, folder))


def page_of(
    title: str, charts: Sequence[Chart], tables: Sequence[Rows], more: Markup | None = None
) -> str:
    """Return a page of charts and tables; `more` goes behind them."""
    parts = [figures_markup(charts), *map(table_markup, tables)]
    return page_markup(title, [*parts, *([] if more is None else [more])])


def _links(gathered: Gathered, folder: Path) -> Markup:
    results = [*gathered.results, *(result for result, _ in gathered.left_out)]
    items = []
    for result in results:
        path = Path(result.rung.config.run_dir)
        near = path.relative_to(folder) if path.is_relative_to(folder) else path.resolve()
        target = escaped(f"{near}/metrics.jsonl")
        items.append(f'<li><a href="{target}">{escaped(result.rung.name)}</a></li>')
    return Markup(f"<h2>metrics of every run</h2><ul>{''.join(items)}</ul>")
