"""Find personal data of all types in a text, and put something else in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from data_pipeline.pii.accounts import CARDS, IBANS
from data_pipeline.pii.contacts import IP_ADDRESSES, PHONES, find_emails
from data_pipeline.pii.finding import Span, Subject
from data_pipeline.pii.national_ids import NATIONAL_IDS
from data_pipeline.pii.secrets import SECRETS

Finder = Callable[[Subject, str], Iterator[Span]]

# What is two things at once counts as the first.
FINDERS: dict[str, tuple[Finder, ...]] = {
    "secret": tuple(detector.find for detector in SECRETS),
    "email": (find_emails,),
    "iban": tuple(detector.find for detector in IBANS),
    "card": tuple(detector.find for detector in CARDS),
    "national_id": tuple(detector.find for detector in NATIONAL_IDS),
    "ip": tuple(detector.find for detector in IP_ADDRESSES),
    "phone": tuple(detector.find for detector in PHONES),
}


def find_all(text: str, kinds: Sequence[str]) -> list[Span]:
    """Return the personal data of some types in a text, in order, none within another."""
    order = [kind for kind in FINDERS if kind in kinds]
    subject = Subject(text)
    found = [
        (span.start, place, -span.end, span)
        for place, kind in enumerate(order)
        for find in FINDERS[kind]
        for span in find(subject, kind)
    ]
    spans: list[Span] = []
    for *_, span in sorted(found):
        if not spans or span.start >= spans[-1].end:
            spans.append(span)
    return spans


def replace_all(text: str, spans: Sequence[Span], placeholder: str) -> str:
    """Return the text with the placeholder for each span; `{type}` in it is the span's type."""
    parts: list[str] = []
    position = 0
    for span in spans:
        parts += [text[position : span.start], placeholder.replace("{type}", span.kind.upper())]
        position = span.end
    return "".join([*parts, text[position:]])
