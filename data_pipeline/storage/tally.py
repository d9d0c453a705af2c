"""What a task counts: documents in and out, reasons, a few samples of each kind, lengths; and the
file that says of every dropped document why.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.documents import Document, Dropped
from data_pipeline.storage.whole import written_whole

SAMPLES = 5  # of kept documents, and of those dropped for each reason
SAMPLE_CHARACTERS = 2_000
KEPT = "kept"
COUNTED_TEXTS = ("language", "perplexity_bucket", "license", "licence")  # of meta, beside numbers
MOST_VALUES, VALUE_CHARACTERS, OTHERS = 200, 60, "(others)"
DROPPED_SCHEMA = pa.schema([("id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


class Tally:
    """Counts what a step does with the documents of a shard."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()
        self._lengths_of_dropped: Counter[int] = Counter()
        self._values: dict[str, Counter[str]] = {}
        self._samples: dict[str, list[dict[str, Any]]] = {}
        self._dropped: tuple[list[str], ...] = ([], [], [])

    def came(self, document: Document) -> None:
        """Count a document that the step is given."""
        self._counts["documents_in"] += 1
        self._counts["bytes_in"] += len(document.text.encode())

    def kept(self, document: Document) -> None:
        """Count a document that the step yields."""
        size = len(document.text.encode())
        self._counts["documents_out"] += 1
        self._counts["bytes_out"] += size
        self._lengths[size.bit_length()] += 1
        self._count_values(document)
        self._sample(KEPT, document, "")

    def dropped(self, dropped: Dropped) -> None:
        """Count a document that is left out, and note why."""
        document, reason, detail = dropped
        self._reasons[reason] += 1
        self._lengths_of_dropped[len(document.text.encode()).bit_length()] += 1
        for column, value in zip(self._dropped, (document.id, reason, detail), strict=True):
            column.append(value)
        self._sample(reason, document, detail)

    def figures(self) -> dict[str, Any]:
        """Return everything but the dropped documents as JSON."""
        names = ("documents_in", "documents_out", "bytes_in", "bytes_out")
        return {
            **{name: self._counts[name] for name in names},
            "reasons": dict(sorted(self._reasons.items())),
            "length_bits": _by_bits(self._lengths),
            "dropped_length_bits": _by_bits(self._lengths_of_dropped),
            "values": {
                name: dict(sorted(self._values[name].items())) for name in sorted(self._values)
            },
            "samples": {name: self._samples[name] for name in sorted(self._samples)},
        }

    def write_dropped(self, path: Path) -> None:
        """Write why each dropped document is not there any more, in the order it was dropped."""
        with written_whole(path) as unfinished:
            table = pa.table(list(self._dropped), schema=DROPPED_SCHEMA)
            pq.write_table(table, unfinished, compression="zstd", write_page_checksum=True)

    def _count_values(self, document: Document) -> None:
        """Count what is known of a document: numbers to two digits, texts of a few names."""
        for name, value in document.meta.items():
            if isinstance(value, str):
                if name not in COUNTED_TEXTS:
                    continue
                shown = value[:VALUE_CHARACTERS]
            else:
                shown = f"{value:.2g}"
            counts = self._values.setdefault(name, Counter())
            counts[shown if shown in counts or len(counts) < MOST_VALUES else OTHERS] += 1

    def _sample(self, name: str, document: Document, detail: str) -> None:
        found = self._samples.setdefault(name, [])
        rank = hashlib.sha256(b"sample\0" + document.id.encode()).hexdigest()[:12]
        if len(found) == SAMPLES and rank >= found[-1]["rank"]:
            return
        found.append(
            {
                "rank": rank,
                "id": document.id,
                "detail": detail[:200],
                "text": document.text[:SAMPLE_CHARACTERS],
            }
        )
        found.sort(key=lambda sample: (sample["rank"], sample["id"]))
        del found[SAMPLES:]


def add_up(figures: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of several tasks of one step as those of one: sums, and the samples of
    lowest rank, which are the same however documents lie in shards.
    """
    total: Counter[str] = Counter()
    nested: dict[str, Counter[str]] = {
        name: Counter() for name in ("reasons", "length_bits", "dropped_length_bits")
    }
    values: dict[str, Counter[str]] = {}
    samples: dict[str, list[dict[str, Any]]] = {}
    for one in figures:
        total.update({name: one[name] for name in one if isinstance(one[name], int)})
        for name, counter in nested.items():
            counter.update(one[name])
        for name, counts in one["values"].items():
            values.setdefault(name, Counter()).update(counts)
        for reason, found in one["samples"].items():
            both = [*samples.get(reason, []), *found]
            samples[reason] = sorted(both, key=lambda sample: (sample["rank"], sample["id"]))[
                :SAMPLES
            ]
    sums = {name: dict(sorted(counter.items())) for name, counter in nested.items()}
    known = {name: dict(sorted(values[name].items())) for name in sorted(values)}
    return {**dict(total), **sums, "values": known, "samples": dict(sorted(samples.items()))}


def _by_bits(lengths: Counter[int]) -> dict[str, int]:
    return {str(bits): count for bits, count in sorted(lengths.items())}
