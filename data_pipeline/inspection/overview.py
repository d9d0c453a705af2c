"""`maxlm data inspect CORPUS`: what it was made from, what each step let through, samples; and the
data card.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.card.page import render
from data_pipeline.inspection.corpus import Corpus
from data_pipeline.inspection.figures import decision_rows, facts_of, funnel_rows, reason_rows
from data_pipeline.inspection.printing import Printer, refuse_negative
from data_pipeline.inspection.show import show
from data_pipeline.storage.disk import disk_errors
from maxlm.config.errors import UserError
from maxlm.files import write_whole


def run(arguments: argparse.Namespace) -> int:
    """Carry out the action; return its exit code."""
    corpus = Corpus(arguments.corpus, tokenizer=arguments.tokenizer)
    printer = Printer(as_json=arguments.json)
    card = None if arguments.card is None else Path(arguments.card)
    if card is not None and not card.absolute().parent.is_dir():
        raise UserError(f"--card {card}: there is no such folder; make it")
    if card is not None and card.is_dir():
        raise UserError(f"--card {card}: a folder; name a file in it, such as {card / 'card.html'}")
    refuse_negative(arguments, "random", "characters")
    if arguments.json:
        printer.record({"manifest": corpus.manifest, **_without_samples(corpus.report)})
    else:
        _print(corpus, printer)
        if arguments.random:
            printer.line()
            chosen = corpus.sample(arguments.random, seed=arguments.seed)
            show(corpus, chosen, printer, most=arguments.characters)
    if card is not None:
        with disk_errors(card):
            write_whole(card, render(corpus, seed=arguments.seed).encode())
        if not arguments.json:
            printer.line(f"{card}: the data card, for a browser")
    return 0


def _print(corpus: Corpus, printer: Printer) -> None:
    printer.line(str(corpus.folder))
    printer.facts(facts_of(corpus))
    for rows in (funnel_rows(corpus), reason_rows(corpus), *decision_rows(corpus)):
        if rows.rows:
            printer.table(rows)


def _without_samples(report: Mapping[str, Any]) -> dict[str, Any]:
    steps = [
        {name: value for name, value in step.items() if name != "samples"}
        for step in report["steps"]
    ]
    return {**report, "steps": steps}
