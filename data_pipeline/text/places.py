"""Places of a text that the model reads and does not learn, in a document's metadata: first and end
character of each, `12-40,55-71`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from data_pipeline.documents import Document, Value

MASK = "loss_masked"
Span = tuple[int, int]


def masked_spans(meta: Mapping[str, Value]) -> list[Span]:
    """Return the places that a document's metadata name, in order."""
    text = str(meta.get(MASK, ""))
    pairs = (pair.split("-") for pair in text.split(",") if pair)
    return [(int(begin), int(end)) for begin, end in pairs]


def with_masked(document: Document, spans: Iterable[Span]) -> Document:
    """Return a document with places added to those that are masked already."""
    merged = _merged([*masked_spans(document.meta), *spans])
    meta = {key: value for key, value in document.meta.items() if key != MASK}
    if merged:
        meta[MASK] = ",".join(f"{begin}-{end}" for begin, end in merged)
    return Document(document.id, document.source, document.text, meta)


def cut_spans(spans: Sequence[Span], begin: int, end: int) -> list[Span]:
    """Return the places within characters [begin, end), counted from `begin`."""
    return [
        (max(first, begin) - begin, min(last, end) - begin)
        for first, last in spans
        if first < end and last > begin
    ]


def _merged(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for begin, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged
