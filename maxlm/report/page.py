"""The page of a run: facts, curves, goodput, evaluations, incidents, checkpoints, environment, config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from maxlm.metrics.history.events import Happened
from maxlm.pages import Markup, Rows, escaped, figures_markup, page_markup, table_markup
from maxlm.report.charts import draw_all
from maxlm.report.record import BEGINNINGS, RunRecord
from maxlm.report.tables import (
    checkpoint_rows,
    environment_rows,
    evaluation_rows,
    facts_of,
    goodput_rows,
    moment,
    start_rows,
)

MOST_EVENTS = 500
MOST_SIGNS = 2000
_NOTHING = Markup("")
_STYLE = """
.charts { margin-top: 2em; } .words td:last-child, .words th:last-child { text-align: left; }
.facts td { text-align: left; overflow-wrap: anywhere; } .facts td:first-child { white-space: nowrap; color: #666; }
.events { width: 100%; } .events td, .events th { text-align: left; white-space: nowrap; }
.events td:last-child { white-space: pre-wrap; overflow-wrap: anywhere; width: 100%; }
.events .WARNING td:nth-child(2) { color: #b35900; }
.events .ERROR td:nth-child(2) { color: #b3261e; font-weight: bold; }
pre, .events small { font: 12px/1.4 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.events small { display: block; color: #666; max-height: 12em; overflow-y: auto; }
summary { cursor: pointer; font-size: 1.15em; font-weight: bold; margin-top: 2em; }
"""


def render(run: RunRecord) -> str:
    """Return the page."""
    tables = [
        _with_words(goodput_rows(run)) if run.spans else _NOTHING,
        _table(evaluation_rows(run)),
        _with_words(start_rows(run)),
        _table(checkpoint_rows(run)),
        _with_words(environment_rows(run)),
    ]
    parts = [
        _facts(facts_of(run)),
        figures_markup(draw_all(run)),
        _incidents(run.events),
        *tables,
        _config(run.config) if run.config else _NOTHING,
    ]
    return page_markup(f"Run: {run.folder}", parts, style=_STYLE)


def _table(rows: Rows) -> Markup:
    """Return a table; nothing where it has no rows."""
    return table_markup(rows) if rows.rows else _NOTHING


def _with_words(rows: Rows) -> Markup:
    """Return a table whose last column is words, not figures."""
    return Markup(f'<div class="words">{_table(rows)}</div>')


def _facts(facts: Mapping[str, str]) -> Markup:
    rows = "".join(
        f"<tr><td>{escaped(name)}</td><td>{escaped(value)}</td></tr>"
        for name, value in facts.items()
    )
    return Markup(f'<table class="facts"><tbody>{rows}</tbody></table>')


def _incidents(events: Sequence[Happened]) -> Markup:
    shown = events[-MOST_EVENTS:]
    title = f"What happened ({len(shown):,} of {len(events):,} events, newest first)"
    if len(shown) == len(events):
        title = "What happened, newest first"
    head = "".join(f"<th>{name}</th>" for name in ("time (UTC)", "event", "step", "process", ""))
    rows = "".join(_incident(event) for event in reversed(shown))
    table = f'<table class="events"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return Markup(f"<h2>{escaped(title)}</h2>{table if shown else '<p>nothing is known</p>'}")


def _incident(event: Happened) -> str:
    level = event.level if event.level in ("WARNING", "ERROR") else "INFO"
    step = "" if event.step is None else f"{event.step:,}"
    cells = (moment(event.time), event.kind, step, str(event.process))
    text = escaped(event.text[:MOST_SIGNS])
    values = event.values
    if event.kind in BEGINNINGS:  # all else has a table of its own
        values = {name: value for name, value in values.items() if name == "differences" and value}
    if values:
        text = Markup(f"{text}<small>{escaped(_values(values))}</small>")
    first = "".join(f"<td>{escaped(cell)}</td>" for cell in cells)
    return f'<tr class="{level}">{first}<td>{text}</td></tr>'


def _values(values: Mapping[str, object]) -> str:
    """Return figures one after the other, and texts of several lines below them."""
    short = [
        f"{name}={_value(value)}"
        for name, value in values.items()
        if not (isinstance(value, str) and "\n" in value)
    ]
    long = [value for value in values.values() if isinstance(value, str) and "\n" in value]
    return "\n".join([", ".join(short), *long])[:MOST_SIGNS]


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _config(text: str) -> Markup:
    return Markup(f"<details><summary>Config</summary><pre>{escaped(text)}</pre></details>")
