"""Remove passages that occur elsewhere in the corpus, or mark them to be kept out of the loss.

Three rounds: minimizers of every shard; which of them occur twice (`twice`), and fingerprints of
the windows that have those (`windows`); which windows occur twice (`repeats`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipeline.dedup.passages import fingerprints, is_among, spans_of, windows_of
from data_pipeline.dedup.sorted_keys import (
    Copies,
    KeyFile,
    Part,
    find_copies,
    of_shard,
    parts_needed,
    row_names,
    rows_of,
    slice_of_part,
    sorted_table,
)
from data_pipeline.dedup.words import Words, batches, hash_words
from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.dedup.parts import Plan, found_in, rows_in
from data_pipeline.steps.step import Arrays, Decision, Shard, Work
from data_pipeline.storage.arrays import read_rows
from data_pipeline.text.places import with_masked
from maxlm.config.pipeline.dedup.substring_dedup import SubstringDedupConfig

"""Metadata of the spans that are kept out of the loss: `first-end,first-end`, in characters."""


class SubstringDedup:
    """Finds windows of `min_tokens` that occur again; what they cover goes or is marked."""

    def __init__(self, config: SubstringDedupConfig):
        self._config = config

    def keys(self, documents: Iterator[Document], shard: Shard, given: Sequence[Path]) -> Arrays:
        """Return the shard's minimizers, each once, and which of them it has more often."""
        del shard, given
        sample = [
            windows_of(words, self._config.min_tokens).sample
            for _, words in self._with_words(documents)
        ]
        values, counts = np.unique(
            np.concatenate([*sample, np.empty(0, np.uint64)]), return_counts=True
        )
        return sorted_table("sample", np.arange(values.size), values) | {"again": counts > 1}

    def reduce(self, keys: Sequence[Path], work: Work) -> Decision:
        """Find the minimizers that occur twice, then the windows."""
        plan, given = self._plan(keys, "sample", work)
        twice = work.over_parts("twice", plan.parts, given=given)
        windows = work.over_shards("windows", given=twice)
        plan, given = self._plan(windows, "window", work)
        repeats = work.over_parts("repeats", plan.parts, given=given)
        verdicts = (
            self._verdict(windows[shard], repeats, shard, goes=not protected)
            for shard, protected in enumerate(plan.protected)
        )
        report = {
            "minimizers": sum(rows_in(path, "sample") for path in keys),
            "minimizers_occurring_twice": sum(rows_in(path) for path in twice),
            "windows_compared": sum(rows_in(path, "window") for path in windows),
            "windows_repeated_in_other_shards": sum(rows_in(path) for path in repeats),
        }
        return Decision(verdicts, report)

    def twice(self, part: int, given: Sequence[Path]) -> Arrays:
        """Return the minimizers that occur twice, in a shard or in several, for a part of the key
        space; one row for every shard that has them.
        """
        share, num_files = Part(part, Plan.read(given[0]).parts), len(given) - 1
        found = self._copies("sample", part, given)
        several = np.unique(np.concatenate(found))
        rows, values = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for shard in range(num_files):
            path = given[1 + shard]
            where = slice_of_part(path, "sample.high", share)
            again = read_rows(path, "again", where.start, where.stop)
            value = read_rows(path, "sample.high", where.start, where.stop)
            again[rows_of(several[of_shard(several, shard)]) - where.start] = True
            rows.append(row_names(shard, where.start + np.flatnonzero(again)))
            values.append(value[again])
        return {"rows": np.concatenate(rows), "values": np.concatenate(values)}

    def windows(self, documents: Iterator[Document], shard: Shard, given: Sequence[Path]) -> Arrays:
        """Return fingerprints of the windows whose minimizer occurs twice, each window once, and
        where the shard has one again.
        """
        twice = found_in(given, shard.index)["values"]
        found, prints, first = [np.empty(0, np.int64)], [np.empty((2, 0), np.uint64)], 0
        ends = [np.empty(0, np.int64)]
        for _, words in self._with_words(documents):
            windows = windows_of(words, self._config.min_tokens)
            starts = windows.starts[is_among(windows.minimizers, twice)]
            found.append(first + starts)
            prints.append(fingerprints(words, starts, self._config.min_tokens))
            ends.append(first + words.offsets[1:])
            first += words.hashes.size
        table = self._once_and_again(np.concatenate(found), np.concatenate(prints, axis=1))
        return table | {"ends": np.concatenate(ends)}

    def repeats(self, part: int, given: Sequence[Path]) -> Arrays:
        """Return the windows that an earlier shard has, in a part of the key space; with keep=none
        also those that a later one has.
        """
        found = self._copies("window", part, given)
        rows = np.concatenate(found) if self._config.keep == "none" else found.rows
        return {"rows": np.unique(rows)}

    def apply(self, documents: Iterator[Document], verdict: Arrays) -> Iterator[Document | Dropped]:
        """Yield the documents without the passages, or with their places in the metadata."""
        starts, begin = verdict["starts"], 0
        for document, end in zip(documents, verdict["ends"].tolist(), strict=True):
            mine = starts[slice(*np.searchsorted(starts, (begin, end)))] - begin
            yield self._without(document, mine) if mine.size else document
            begin = end

    def _without(self, document: Document, starts: np.ndarray) -> Document | Dropped:
        words = hash_words([document.text], exactly=True)
        tokens = spans_of(starts, self._config.min_tokens)
        begins, ends = words.starts[tokens[:, 0]], words.ends[tokens[:, 1] - 1]
        spans = list(zip(begins.tolist(), ends.tolist(), strict=True))
        if self._config.action == "mask":
            return with_masked(document, spans)
        text = "".join(
            document.text[after:before]
            for after, before in zip([0, *ends.tolist()], [*begins.tolist(), None], strict=True)
        )
        if text.strip():
            return replace(document, text=text)
        return Dropped(document, "substring_dedup", "all of it occurs elsewhere")

    def _with_words(self, documents: Iterator[Document]) -> Iterator[tuple[list[Document], Words]]:
        for portion in batches(documents, lambda document: len(document.text)):
            yield portion, hash_words([document.text for document in portion], exactly=True)

    def _plan(self, files: Sequence[Path], table: str, work: Work) -> tuple[Plan, list[Path]]:
        """Return how the key space of a table is cut, and what its parts are given."""
        number = sum(rows_in(path, table) for path in files)
        plan = Plan.of(work, parts_needed(number, work.memory_bytes))
        return plan, [plan.write(work.folder / f"{table}.safetensors"), *files]

    @staticmethod
    def _copies(table: str, part: int, given: Sequence[Path]) -> Copies:
        plan = Plan.read(given[0])
        files = [KeyFile(shard, given[1 + shard]) for shard in plan.precedence]
        return find_copies(files, table, Part(part, plan.parts))

    def _once_and_again(self, starts: np.ndarray, prints: np.ndarray) -> dict[str, np.ndarray]:
        order = np.lexsort((prints[1], prints[0]))
        starts, prints = starts[order], prints[:, order]
        new = np.ones(starts.size, bool)
        new[1:] = (prints[:, 1:] != prints[:, :-1]).any(axis=0)
        again = ~new
        if self._config.keep == "none":
            again[:-1] |= ~new[1:]
        table = sorted_table("window", starts[new], prints[0, new], prints[1, new])
        return table | {"again": np.sort(starts[again])}

    @staticmethod
    def _verdict(windows: Path, repeats: Sequence[Path], shard: int, *, goes: bool) -> Arrays:
        again, ends = (read_rows(windows, name) for name in ("again", "ends"))
        elsewhere = rows_of(found_in(repeats, shard)["rows"]).astype(np.int64)
        return {"starts": np.union1d(again, elsewhere) if goes else again[:0], "ends": ends}
