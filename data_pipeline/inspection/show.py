"""`maxlm data show CORPUS`: documents by their ids or by chance, and why one is not there."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from data_pipeline.inspection.corpus import PIECE, Corpus, Stored
from data_pipeline.inspection.printing import Printer, refuse_negative
from data_pipeline.inspection.why import Verdict, explain, read_dropped
from data_pipeline.staging import DROPPED_NAME
from data_pipeline.tokens.order import SPLITS
from maxlm.config.errors import UserError


def run(arguments: argparse.Namespace) -> int:
    """Carry out the action; return its exit code."""
    corpus = Corpus(arguments.corpus, tokenizer=arguments.tokenizer)
    printer = Printer(as_json=arguments.json)
    refuse_negative(arguments, "random", "characters")
    if arguments.why:
        _why(corpus, list(arguments.why), printer)
    elif arguments.ids:
        found = list(corpus.find(arguments.ids))
        show(corpus, found, printer, most=arguments.characters)
        _refuse_missing(corpus, arguments.ids, found)
    else:
        splits = SPLITS if arguments.split is None else (arguments.split,)
        chosen = corpus.sample(arguments.random, seed=arguments.seed, splits=splits)
        show(corpus, chosen, printer, most=arguments.characters)
    return 0


def show(corpus: Corpus, documents: list[Stored], printer: Printer, *, most: int | None) -> None:
    """Print documents with their texts, the first `most` characters of each."""
    for document, text in corpus.texts(documents):
        if printer.as_json:
            made = corpus.made_from(document.id)
            printer.record(document._asdict() | (made._asdict() if made else {}) | {"text": text})
            continue
        printer.line(document.id)
        printer.facts({"tokens": _place(document), **_whence(corpus, document.id)})
        printer.text(text, most)
        printer.line()


def _why(corpus: Corpus, ids: list[str], printer: Printer) -> None:
    dropped = list(read_dropped(corpus.folder / DROPPED_NAME, ids))
    found = list(corpus.find(ids))
    for gone in dropped:
        decisions = corpus.report["decisions"]
        verdict = explain(gone, corpus.manifest["settings"]["steps"], decisions)
        if printer.as_json:
            printer.record(_as_json(verdict))
        else:
            _print_verdict(corpus, verdict, printer)
    for document in found:
        if printer.as_json:
            printer.record(document._asdict() | {"dropped": False})
        else:
            printer.line(f"{document.id}: it is in the corpus")
            printer.facts({"tokens": _place(document), **_whence(corpus, document.id)})
    _refuse_missing(corpus, ids, [*found, *dropped])


def _print_verdict(corpus: Corpus, verdict: Verdict, printer: Printer) -> None:
    gone = verdict.gone
    printer.line(f"{gone.id}: dropped by step {gone.step}")
    printer.facts(
        {
            "rule": gone.reason,
            "what it is": verdict.about,
            "measured": verdict.measured if verdict.kept is None else "",
            "limit": verdict.limit,
            "Jaccard": "" if verdict.similarity is None else f"{verdict.similarity:.3f}",
            "what stays": "" if verdict.kept is None else _kept(corpus, verdict.kept),
            **_whence(corpus, gone.id),
        }
    )
    text = _sample(corpus.report, gone.step, gone.reason, gone.id)
    if text is not None:
        printer.text(text, None)


def _kept(corpus: Corpus, identity: str) -> str:
    """Say where the document is that stays in a copy's place."""
    places = ", ".join(map(_place, corpus.find([identity])))
    return f"{identity} ({places or 'not in this corpus: of another source, or dropped later'})"


def _sample(report: dict[str, Any], step: str, reason: str, identity: str) -> str | None:
    """Return the text of a dropped document, if it is one of those that were kept to look at."""
    for one in report["steps"]:
        if one["step"] == step:
            for sample in one["samples"].get(reason, ()):
                if sample["id"] == identity:
                    return str(sample["text"])
    return None


def _as_json(verdict: Verdict) -> dict[str, Any]:
    own = {name: value for name, value in verdict._asdict().items() if name != "gone"}
    return {**verdict.gone._asdict(), **own, "dropped": True}


def _place(document: Stored) -> str:
    end = document.start + document.tokens
    return f"{document.split} [{document.start:,}, {end:,}), {document.tokens:,}"


def _whence(corpus: Corpus, identity: str) -> dict[str, str]:
    """Say where a document comes from: another one that it was written from, a file."""
    made, facts, read = corpus.made_from(identity), dict[str, str](), identity
    if made is not None:
        places = ", ".join(map(_place, corpus.find([made.origin])))
        facts["written from"] = f"{made.origin} ({places or 'not in this corpus'})"
        facts["by template"] = made.template
    while made is not None:  # what was written may be written from again
        read = made.origin
        made = corpus.made_from(read)
    return {**facts, "read from": _origin(corpus, read)}


def _origin(corpus: Corpus, identity: str) -> str:
    found = corpus.origin(identity)
    if found is None:
        return ""
    place = f", at {found.place}" if found.place else ""
    return f"{found.file['name']}{place} (SHA-256 {found.file['sha256'][:12]})"


def _refuse_missing(corpus: Corpus, ids: list[str], found: list[Any]) -> None:
    known = {one.id for one in found} | {re.sub(PIECE, "", one.id) for one in found}
    missing = [identity for identity in ids if identity not in known]
    if not missing:
        return
    source = Path(next((one.id for one in corpus.documents()), "SOURCE/")).parts[0]
    lines = []
    for identity in missing:
        where = corpus.origin(identity)
        read = f"its file was read, but no document at {where.place or 'all'}" if where else ""
        lines.append(f"{identity}: {read or 'no document of this id was read'}")
    lines.append(f"ids begin with {source}/: maxlm data search {corpus.folder} --ids TEXT")
    raise UserError("\n  ".join([f"{corpus.folder}: not all of these are known:", *lines]))
