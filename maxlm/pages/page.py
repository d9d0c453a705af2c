"""HTML pages that need no network and no script: style, tables, charts; all text is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING, NewType

from maxlm.pages.rows import Rows
from maxlm.pages.signs import visible

if TYPE_CHECKING:
    from maxlm.pages.chart import Chart

Markup = NewType("Markup", str)
"""HTML in which all text is escaped already; made by the functions of this module."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; } h2 { font-size: 1.15em; margin-top: 2em; }
h3 { font-size: 1em; margin: 1.5em 0 .4em; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; max-width: 100%; }
td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; font-weight: normal;
 vertical-align: top; }
th { color: #666; }
td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere; min-width: 6em;
 white-space: pre-wrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 1em; }
figure { margin: 0; } figcaption, .about { color: #666; } svg { width: 100%; height: auto; }
"""


def escaped(text: str) -> Markup:
    """Return a text as markup that shows it, whatever is in it.

    Control characters, which HTML cannot hold, and signs that turn the direction of the text around
    them are shown as their numbers.
    """
    return Markup(html.escape(visible(text)))


def table_markup(rows: Rows) -> Markup:
    """Return a table below its title."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in rows.columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>" for row in rows.rows
    )
    return Markup(
        f"<h2>{escaped(rows.title)}</h2><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def figures_markup(charts: Iterable[Chart]) -> Markup:
    """Return charts one beside the other, each with what it shows."""
    figures = "".join(
        f"<figure>{chart.svg()}<figcaption>{escaped(chart.meaning)}</figcaption></figure>"
        for chart in charts
    )
    return Markup(f'<div class="charts">{figures}</div>')


def page_markup(title: str, parts: Iterable[Markup], *, style: str = "") -> str:
    """Return the whole page.

    Args:
      title: of the page.
      parts: one below the other.
      style: CSS beside that of all pages.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escaped(title)}</title><style>{_STYLE}{style}</style></head><body>"
        f"<h1>{escaped(title)}</h1>{''.join(parts)}</body></html>\n"
    )
