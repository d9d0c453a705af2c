"""Drop exact copies of documents, paragraphs or lines, over all shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from data_pipeline.dedup.exact import digests, units_of
from data_pipeline.dedup.sorted_keys import (
    Copies,
    KeyFile,
    Part,
    find_copies,
    parts_needed,
    rows_of,
    shards_of,
    sorted_table,
)
from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.dedup.parts import Plan, found_by_shard, rows_in
from data_pipeline.steps.step import Arrays, Decision, Shard, Work
from maxlm.config.pipeline.dedup.exact_dedup import ExactDedupConfig

_TABLE = "unit"
_UNITS_AT_A_TIME = 2**14


class ExactDedup:
    """Keeps the first of equal units; protected sources come before all others."""

    def __init__(self, config: ExactDedupConfig):
        self._config = config

    def keys(self, documents: Iterator[Document], shard: Shard, given: Sequence[Path]) -> Arrays:
        """Return the sorted digests of the shard's units."""
        del shard, given
        # All documents are compared, blank lines and short ones are not.
        least = 0 if self._config.unit == "document" else self._config.min_words
        rows, keys, first = [np.empty(0, np.int64)], [np.empty((2, 0), np.uint64)], 0
        units = self._units(documents)
        while portion := list(islice(units, _UNITS_AT_A_TIME)):
            row, key = digests(portion, ignore_case=self._config.ignore_case, min_words=least)
            rows.append(first + row)
            keys.append(key)
            first += len(portion)
        high, low = np.concatenate(keys, axis=1)
        return sorted_table(_TABLE, np.concatenate(rows), high, low)

    def reduce(self, keys: Sequence[Path], work: Work) -> Decision:
        """Find the copies, one part of the key space after the other."""
        number = sum(rows_in(path, _TABLE) for path in keys)
        plan = Plan.of(work, parts_needed(number, work.memory_bytes))
        given = [plan.write(work.folder / "plan"), *keys]
        parts = work.over_parts("copies", plan.parts, given=given)
        verdicts = found_by_shard(parts, len(work.shards))
        copies = [rows_in(path) for path in parts]
        return Decision(verdicts, {f"{self._config.unit}s": number, "copies": sum(copies)})

    def copies(self, part: int, given: Sequence[Path]) -> Arrays:
        """Return the copies whose key is in a part of the key space."""
        plan = Plan.read(given[0])
        files = [KeyFile(shard, given[1 + shard]) for shard in plan.precedence]
        found = find_copies(files, _TABLE, Part(part, plan.parts))
        goes = ~plan.protected[shards_of(found.rows).astype(np.int64)]
        return Copies(found.rows[goes], found.firsts[goes])._asdict()

    def apply(self, documents: Iterator[Document], verdict: Arrays) -> Iterator[Document | Dropped]:
        """Yield the documents without the units that go."""
        copies = zip(rows_of(verdict["rows"]).tolist(), verdict["firsts"], strict=True)
        upcoming, first = next(copies, None), 0
        reason = f"exact_dedup/{self._config.unit}"
        for document in documents:
            units = units_of(document.text, self._config.unit)
            gone = {}
            while upcoming is not None and upcoming[0] < first + len(units):
                gone[upcoming[0] - first] = upcoming[1]
                upcoming = next(copies, None)
            first += len(units)
            if not gone:
                yield document
                continue
            text = "".join(unit for place, unit in enumerate(units) if place not in gone)
            if text.strip():
                yield Document(document.id, document.source, text, document.meta)
            else:
                yield Dropped(document, reason, self._detail(gone.values()))

    def _units(self, documents: Iterable[Document]) -> Iterator[str]:
        for document in documents:
            yield from units_of(document.text, self._config.unit)

    def _detail(self, firsts: Iterable[np.uint64]) -> str:
        first = np.array([min(firsts)])
        place = f"{self._config.unit} {rows_of(first)[0]} of shard {shards_of(first)[0]}"
        return f"same as {place}"
