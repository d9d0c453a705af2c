"""One HTML page of a ladder: charts, tables, every run; it needs no network and no script."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from maxlm.scaling.ladder.results import Gathered
from maxlm.scaling.ladder.show.charts import Chart
from maxlm.scaling.ladder.show.tables import Rows

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; font-weight: normal; }
th { color: #666; } td:first-child, th:first-child { text-align: left; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 1em; }
figure { margin: 0; } figcaption { color: #666; } svg { width: 100%; height: auto; }
"""


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


def page_of(title: str, charts: Sequence[Chart], tables: Sequence[Rows], more: str = "") -> str:
    """Return a page of charts and tables; `more` is markup that goes behind them."""
    figures = "".join(
        f"<figure>{chart.svg()}<figcaption>{html.escape(chart.meaning)}</figcaption></figure>"
        for chart in charts
    )
    parts = [_table(rows) for rows in tables]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{html.escape(title)}</h1><div class="charts">{figures}</div>'
        f"{''.join(parts)}{more}</body></html>\n"
    )


def _table(rows: Rows) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows.columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows.rows
    )
    return (
        f"<h2>{html.escape(rows.title)}</h2><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _links(gathered: Gathered, folder: Path) -> str:
    results = [*gathered.results, *(result for result, _ in gathered.left_out)]
    items = []
    for result in results:
        path = Path(result.rung.config.run_dir)
        near = path.relative_to(folder) if path.is_relative_to(folder) else path.resolve()
        target = html.escape(f"{near}/metrics.jsonl", quote=True)
        items.append(f'<li><a href="{target}">{html.escape(result.rung.name)}</a></li>')
    return f"<h2>metrics of every run</h2><ul>{''.join(items)}</ul>"
