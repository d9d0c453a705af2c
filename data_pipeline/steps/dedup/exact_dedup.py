"""Drop exact copies of documents, paragraphs or lines, over all shards.

Two rounds: digests of every shard's units; which of them are copies (`copies`). Of documents, two
more say in whose place a copy goes: ids of the documents that stay (`names`), beside the copies
(`named`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from data_pipeline.dedup.exact import Unit, digests, units_of
from data_pipeline.dedup.near.sets import as_bytes, as_texts
from data_pipeline.dedup.sorted_keys import (
    Copies,
    KeyFile,
    Part,
    find_copies,
    parts_needed,
    rows_of,
    shards_of,
    slice_of_shard,
    sorted_table,
)
from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.dedup.parts import Plan, documents_at, found_by_shard, rows_in
from data_pipeline.steps.step import Arrays, Decision, Shard, Work
from data_pipeline.storage.arrays import array_names, read_arrays, read_rows
from data_pipeline.urls.canonical import URL_KEY
from maxlm.config.errors import UserError
from maxlm.config.pipeline.dedup.exact_dedup import ExactDedupConfig

_TABLE = "unit"
_WEIGHT_OF_IDS = 4
"""A copy takes as much memory with the id of the document that stays."""
_UNITS_AT_A_TIME = 2**14


class ExactDedup:
    """Keeps the first of equal units; protected sources come before all others."""

    def __init__(self, config: ExactDedupConfig):
        self._config = config
        self._unit: Unit = "document" if config.unit == "url" else config.unit

    def keys(self, documents: Iterator[Document], shard: Shard, given: Sequence[Path]) -> Arrays:
        """Return the sorted digests of the shard's units."""
        del shard, given
        # All documents are compared, blank lines and short ones are not, nor what has no address.
        least = {"document": 0, "url": 1}.get(self._config.unit, self._config.min_words)
        rows, keys, first = [np.empty(0, np.int64)], [np.empty((2, 0), np.uint64)], 0
        by_url = self._config.unit == "url"
        units = _addresses(documents) if by_url else self._units(documents)
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
        of_documents = self._unit == "document"
        if not number and self._config.unit == "url" and any(one.documents for one in work.shards):
            raise UserError(
                "exact_dedup.unit=url: no document has an address, so nothing would be found; read some with their "
                "`url` (raw.meta_keys), or leave the step out"
            )
        weight = _WEIGHT_OF_IDS if of_documents else 1
        plan = Plan.of(work, parts_needed(weight * number, work.memory_bytes))
        given = [plan.write(work.folder / "plan"), *keys]
        parts = work.over_parts("copies", plan.parts, given=given)
        if of_documents:
            names = work.over_shards("names", given=parts)
            parts = work.over_parts("named", plan.parts, given=[*parts, *names])
        verdicts = found_by_shard(parts, len(work.shards))
        copies = [rows_in(path) for path in parts]
        return Decision(verdicts, {f"{self._config.unit}s": number, "copies": sum(copies)})

    def copies(self, part: int, given: Sequence[Path]) -> Arrays:
        """Return the copies whose key is in a part of the key space."""
        plan = Plan.read(given[0])
        files = [KeyFile(shard, given[1 + shard]) for shard in plan.precedence]
        found = find_copies(files, _TABLE, Part(part, plan.parts))
        goes = ~plan.protected[shards_of(found.rows).astype(np.int64)]
        copies = Copies(found.rows[goes], found.firsts[goes])
        return copies._asdict() | {"report.firsts": np.unique(copies.firsts)}

    def names(self, documents: Iterator[Document], shard: Shard, given: Sequence[Path]) -> Arrays:
        """Return the ids of a shard's documents that others are copies of."""
        firsts = [np.empty(0, np.uint64)]
        for path in given:
            where = slice_of_shard(path, "report.firsts", shard.index)
            firsts.append(read_rows(path, "report.firsts", where.start, where.stop))
        rows = np.unique(np.concatenate(firsts))
        ids = [document.id for document in documents_at(documents, rows_of(rows))]
        return {"rows": rows, "kept": as_bytes(ids)}

    def named(self, part: int, given: Sequence[Path]) -> Arrays:
        """Return the copies in a part of the key space, each with the id of the one that stays."""
        parts = [path for path in given if "firsts" in array_names(path)]
        copies = read_arrays(parts[part])
        kept = np.full(copies["rows"].size, b"", object)
        for path in given[len(parts) :]:
            rows, ids = read_rows(path, "rows"), read_rows(path, "kept")
            if rows.size:
                place = np.searchsorted(rows, copies["firsts"]).clip(max=rows.size - 1)
                for here in np.flatnonzero(rows[place] == copies["firsts"]):
                    kept[here] = ids[place[here]].tobytes()
        texts = [one.rstrip(b"\0").decode() for one in kept]
        return {"rows": copies["rows"], "firsts": copies["firsts"], "kept": as_bytes(texts)}

    def apply(self, documents: Iterator[Document], verdict: Arrays) -> Iterator[Document | Dropped]:
        """Yield the documents without the units that go."""
        firsts = as_texts(verdict["kept"]) if "kept" in verdict else verdict["firsts"]
        copies = zip(rows_of(verdict["rows"]).tolist(), firsts, strict=True)
        upcoming, first = next(copies, None), 0
        reason = f"exact_dedup/{self._config.unit}"
        for document in documents:
            units = units_of(document.text, self._unit)
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
            yield from units_of(document.text, self._unit)

    def _detail(self, firsts: Iterable[str | np.uint64]) -> str:
        first = next(iter(firsts))
        if isinstance(first, str):
            return f"same as {first}"
        least = np.array([min(firsts)])  # type: ignore[type-var]
        return f"same as {self._config.unit} {rows_of(least)[0]} of shard {shards_of(least)[0]}"


def _addresses(documents: Iterable[Document]) -> Iterator[str]:
    return (str(document.meta.get(URL_KEY, "")) for document in documents)
