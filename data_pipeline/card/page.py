"""The data card's page: facts, funnel, charts, clusters, tokens, samples of what each rule kept and
dropped, side by side, and the steps' settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from data_pipeline.card.charts import draw_all
from data_pipeline.card.tokens import TOP, TokenCounts, top_rows, vocabulary_rows
from data_pipeline.inspection.corpus import Corpus
from data_pipeline.inspection.figures import (
    bytes_per_token,
    cluster_rows,
    decision_rows,
    facts_of,
    funnel_rows,
    reason_rows,
    settings_rows,
)
from data_pipeline.storage.tally import KEPT
from maxlm.pages import Markup, Rows, escaped, figures_markup, page_markup, table_markup

SHOWN = 3  # samples of each rule
SHOWN_CHARACTERS = 700
CHOSEN = 6  # documents of the corpus itself
_STYLE = """
.facts td { text-align: left; overflow-wrap: anywhere; } .facts td:first-child { white-space: nowrap; color: #666; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 0 2em; }
.tables td:last-child { white-space: nowrap; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1em; }
.pair > div { min-width: 0; }
.sample { border: 1px solid #ddd; border-left: 4px solid #4c72b0; margin: .5em 0; padding: .3em .6em; }
.gone { border-left-color: #c44e52; }
.sample header { font-size: 12px; color: #666; overflow-wrap: anywhere; }
.sample pre { margin: .3em 0; font: 12px/1.4 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
 max-height: 15em; overflow-y: auto; }
@media (max-width: 700px) { .pair { grid-template-columns: 1fr; } }
"""


def render(corpus: Corpus, *, seed: int) -> str:
    """Return the page.

    Args:
      seed: of the choice of documents that are shown.
    """
    found = TokenCounts.of(corpus)
    vocabulary = vocabulary_rows(found, corpus.tokenizer, bytes_per_token(corpus))
    top = top_rows(found, corpus.tokenizer)
    halves = (top._replace(rows=top.rows[: TOP // 2]), top._replace(rows=top.rows[TOP // 2 :]))
    parts = [
        _facts(facts_of(corpus)),
        figures_markup(draw_all(corpus.report, found)),
        *_tables([funnel_rows(corpus), reason_rows(corpus)]),
        *_side_by_side(_decisions(corpus)),
        *_side_by_side([vocabulary, *halves]),
        *_samples_by_rule(corpus.report["steps"]),
        _chosen(corpus, seed),
        _settings(corpus),
    ]
    return page_markup(f"Data card: {corpus.folder}", parts, style=_STYLE)


def _tables(tables: Iterable[Rows]) -> Iterator[Markup]:
    return (table_markup(rows) for rows in tables if rows.rows)


def _side_by_side(tables: Iterable[Rows]) -> Iterator[Markup]:
    shown = "".join(f"<div>{table}</div>" for table in _tables(tables))
    yield Markup(f'<div class="tables">{shown}</div>')


def _decisions(corpus: Corpus) -> Iterator[Rows]:
    yield from decision_rows(corpus)
    for report in corpus.report["decisions"].values():
        if report.get("clusters"):
            yield from cluster_rows(report)


def _settings(corpus: Corpus) -> Markup:
    """Return the settings of all steps, which are many, behind a line that opens them."""
    table = table_markup(settings_rows(corpus))
    return Markup(f"<details><summary>What the steps were told</summary>{table}</details>")


def _facts(facts: Mapping[str, str]) -> Markup:
    rows = "".join(
        f"<tr><td>{escaped(name)}</td><td>{escaped(value)}</td></tr>"
        for name, value in facts.items()
        if value
    )
    return Markup(f'<table class="facts"><tbody>{rows}</tbody></table>')


def _samples_by_rule(steps: Iterable[Mapping[str, Any]]) -> Iterator[Markup]:
    steps = list(steps)
    if any(step["samples"].keys() - {KEPT} for step in steps):
        yield Markup("<h2>What the rules dropped and what they kept</h2>")
    for step in steps:
        kept = [_sample(one, gone=False) for one in step["samples"].get(KEPT, ())[:SHOWN]]
        for reason, samples in step["samples"].items():
            if reason == KEPT:
                continue
            gone = [_sample(one, gone=True) for one in samples[:SHOWN]]
            count = step["reasons"].get(reason, len(samples))
            yield Markup(
                f"<h3>{escaped(step['step'])}: {escaped(reason)}, {count:,} dropped</h3>"
                f'<div class="pair"><div><span class="about">dropped</span>{"".join(gone)}</div>'
                f'<div><span class="about">kept by the step</span>{"".join(kept[: len(gone)])}</div></div>'
            )


def _sample(sample: Mapping[str, Any], *, gone: bool) -> Markup:
    detail = f" ({sample['detail']})" if sample["detail"] else ""
    return _shown(f"{sample['id']}{detail}", sample["text"], gone=gone)


def _chosen(corpus: Corpus, seed: int) -> Markup:
    chosen = corpus.sample(CHOSEN, seed=seed)
    shown = [_shown(document.id, text, gone=False) for document, text in corpus.texts(chosen)]
    title = f"Documents of the corpus, chosen by chance (seed {seed})"
    half = (len(shown) + 1) // 2
    columns = "".join(f"<div>{''.join(part)}</div>" for part in (shown[:half], shown[half:]))
    return Markup(f'<h2>{escaped(title)}</h2><div class="pair">{columns}</div>')


def _shown(title: str, text: str, *, gone: bool) -> Markup:
    more = "" if len(text) <= SHOWN_CHARACTERS else " ..."
    return Markup(
        f'<div class="sample{" gone" if gone else ""}"><header>{escaped(title)}</header>'
        f"<pre>{escaped(text[:SHOWN_CHARACTERS] + more)}</pre></div>"
    )
