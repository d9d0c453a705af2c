"""`maxlm data search CORPUS PATTERN`: documents whose text or id has a text or fits a regular
expression, read a portion at a time.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import NamedTuple

from data_pipeline.inspection.corpus import Corpus, Stored
from data_pipeline.inspection.printing import Printer, refuse_negative
from data_pipeline.inspection.why import Gone, read_dropped
from data_pipeline.staging import DROPPED_NAME
from data_pipeline.tokens.order import SPLITS
from maxlm.config.errors import UserError

CONTEXT = 60  # characters before and after what was found


class Hit(NamedTuple):
    """A document in which something was found.

    Attributes:
      text: what is around the first place.
      places: how often it is in there.
    """

    document: Stored | Gone
    text: str
    places: int


def run(arguments: argparse.Namespace) -> int:
    """Carry out the action; return its exit code."""
    corpus = Corpus(arguments.corpus, tokenizer=arguments.tokenizer)
    printer = Printer(as_json=arguments.json)
    refuse_negative(arguments, "limit")
    pattern = compiled(arguments.pattern, regex=arguments.regex, ignore_case=arguments.ignore_case)
    splits = SPLITS if arguments.split is None else (arguments.split,)
    if arguments.dropped:
        hits = in_dropped(corpus, pattern)
    elif arguments.ids:
        hits = in_ids(corpus, pattern, splits)
    else:
        hits = in_texts(corpus, pattern, splits)
    found = 0
    for hit in hits:
        if found == arguments.limit:
            if not printer.as_json:
                printer.line(f"more than {found}; --limit says how many are shown")
            return 0
        found += 1
        _print(hit, printer)
    if not printer.as_json:
        printer.line(f"{found} found")
    return 0


def compiled(pattern: str, *, regex: bool, ignore_case: bool) -> re.Pattern[str]:
    """Return what is searched for.

    Raises:
      UserError: it is no regular expression.
    """
    try:
        flags = re.MULTILINE | (re.IGNORECASE if ignore_case else 0)
        found = re.compile(pattern if regex else re.escape(pattern), flags)
    except re.error as error:
        raise UserError(
            f"{pattern!r}: not a regular expression: {error}; leave out --regex to search for the text itself"
        ) from None
    if not pattern:
        raise UserError("'': nothing to search for; give a text")
    return found


def in_texts(corpus: Corpus, pattern: re.Pattern[str], splits: tuple[str, ...]) -> Iterator[Hit]:
    """Yield the documents whose text has the pattern, in the order in which they lie."""
    for document, text in corpus.texts(corpus.documents(splits)):
        places = pattern.finditer(text)
        first = next(places, None)
        if first is not None:
            begin, end = max(first.start() - CONTEXT, 0), first.start() + CONTEXT
            around = text[begin : max(end, min(first.end(), end + CONTEXT))]
            yield Hit(document, around, 1 + sum(1 for _ in places))


def in_ids(corpus: Corpus, pattern: re.Pattern[str], splits: tuple[str, ...]) -> Iterator[Hit]:
    """Yield the documents whose id has the pattern."""
    for document in corpus.documents(splits):
        if pattern.search(document.id):
            yield Hit(document, "", 1)


def in_dropped(corpus: Corpus, pattern: re.Pattern[str]) -> Iterator[Hit]:
    """Yield the documents that were dropped whose id, reason or detail has the pattern."""
    for gone in read_dropped(corpus.folder / DROPPED_NAME):
        if any(map(pattern.search, gone)):
            yield Hit(gone, f"{gone.step}: {gone.reason} {gone.detail}", 1)


def _print(hit: Hit, printer: Printer) -> None:
    if printer.as_json:
        printer.record(hit.document._asdict() | {"found": hit.text, "places": hit.places})
        return
    around = " ".join(hit.text.split())
    more = f" ({hit.places} times)" if hit.places > 1 else ""
    printer.line(f"{hit.document.id}{more}{': ' if around else ''}{around}")
