"""Drop documents nearly equal to one that stays, in this corpus or in an earlier one.

Four rounds: band keys of every shard; rows that share a key, linked (`links`); n-grams of the
linked rows alone (`sets`, `earlier_sets`); the exact decision, a share of the clusters at a time
(`decide`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from data_pipeline.dedup.near.clusters import connected_rows
from data_pipeline.dedup.near.index import (
    Signing,
    check_index,
    index_arrays,
    index_files,
    read_sets,
    write_index,
)
from data_pipeline.dedup.near.minhash import band_keys
from data_pipeline.dedup.near.sets import (
    CandidateFiles,
    Sets,
    as_bytes,
    as_texts,
    candidate_arrays,
    distinct_grams,
    joined,
)
from data_pipeline.dedup.near.verify import Candidates, verify
from data_pipeline.dedup.sorted_keys import (
    TASKS_WANTED,
    KeyFile,
    Part,
    find_copies,
    parts_needed,
    rows_of,
)
from data_pipeline.dedup.words import Grams, batches, hash_words, word_grams
from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.dedup.near_report import cluster_figures, summary
from data_pipeline.steps.dedup.parts import (
    Plan,
    documents_at,
    found_by_shard,
    found_in,
    rows_in,
)
from data_pipeline.steps.step import Arrays, Decision, Shard, Work, problem_of
from data_pipeline.storage.arrays import read_arrays, write_arrays
from maxlm.config.errors import Problem
from maxlm.config.pipeline.dedup.near_dedup import NearDedupConfig

# Files of earlier corpora are numbered from here on among the shards.
_EARLIER = 2**31
# What a candidate takes in `decide`, its place under each band key included.
_BYTES_PER_CANDIDATE = 4096
_CANDIDATES_OF_A_TASK = 1024


class NearDedup:
    """Compares documents by their word n-grams."""

    def __init__(self, config: NearDedupConfig):
        self._config = config
        self._signing = Signing(config.ngram_words, config.bands, config.rows)

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield indexes of earlier corpora that are none, or lack a file."""
        for number, folder in enumerate(self._config.earlier):
            where = f"{path}.earlier.{number}"
            yield from problem_of(where, partial(check_index, Path(folder), self._signing))

    @cached_property
    def _earlier(self) -> list[Path]:
        folders = map(Path, self._config.earlier)
        return [file for folder in folders for file in index_files(folder, self._signing)]

    def keys(self, documents: Iterator[Document], shard: Shard, given: Sequence[Path]) -> Arrays:
        """Return the sorted band keys of the shard's documents; those without words have none."""
        del shard, given
        rows, keys, first = [], [], 0
        for texts in batches((document.text for document in documents), len):
            grams = self._grams(texts)
            filled = np.flatnonzero(np.diff(grams.offsets))
            rows.append(first + filled)
            keys.append(self._keys(grams)[:, filled])
            first += len(texts)
        empty = np.empty((self._config.bands, 0), np.uint64)
        return self._signing.sorted_tables(
            np.concatenate([*rows, np.empty(0, np.int64)]), np.concatenate([*keys, empty], axis=1)
        )

    def reduce(self, keys: Sequence[Path], work: Work) -> Decision:
        """Link, then decide; write the index if there shall be one."""
        clusters, given = self._clusters(keys, work)
        sets = work.over_shards("sets", given=given)
        sets += work.over_parts("earlier_sets", len(self._earlier), given=[*given, *self._earlier])
        candidates = clusters.shape[1]
        fits = candidates * _BYTES_PER_CANDIDATE // work.memory_bytes
        wanted = min(candidates // _CANDIDATES_OF_A_TASK, TASKS_WANTED)
        plan = Plan.of(work, max(1, fits, wanted))
        plan_file = plan.write(work.folder / "decide.safetensors")
        decided = work.over_parts("decide", plan.parts, given=[plan_file, *sets])
        if self._config.index is not None:
            stays = work.over_shards("index_rows", given=decided)
            write_index(Path(self._config.index), self._signing, stays)
        report = summary((read_arrays(path) for path in decided), work.shards)
        return Decision(found_by_shard(decided, len(work.shards)), report)

    def _clusters(self, keys: Sequence[Path], work: Work) -> tuple[np.ndarray, list[Path]]:
        """Return the linked rows with their clusters, and the files of plan and clusters."""
        files = [*keys, *self._earlier]
        number = sum(rows_in(path, self._signing.tables[0]) for path in files)
        plan = Plan.of(work, parts_needed(number, work.memory_bytes))
        plan_file = plan.write(work.folder / "links.safetensors")
        linked = work.over_parts("links", plan.parts, given=[plan_file, *files])
        batch = (read_arrays(path) for path in linked)
        clusters = connected_rows((one["rows"], one["cluster"]) for one in batch)
        # Clusters of earlier documents alone hold nothing to decide.
        ours = clusters[0] < np.uint64(_EARLIER << 32)
        open_clusters = np.unique(clusters[1, ours])
        clusters = clusters[:, np.isin(clusters[1], open_clusters)]
        path = work.folder / "clusters.safetensors"
        write_arrays(path, {"rows": clusters[0], "cluster": clusters[1]})
        return clusters, [plan_file, path]

    def links(self, part: int, given: Sequence[Path]) -> Arrays:
        """Return the rows that share a band key in a part of the key space, and their clusters."""
        plan = Plan.read(given[0])
        shards = [*range(plan.protected.size), *range(_EARLIER, _EARLIER + len(self._earlier))]
        files = [KeyFile(*one) for one in zip(shards, given[1:], strict=True)]
        share = Part(part, plan.parts)
        linked = connected_rows(find_copies(files, name, share) for name in self._signing.tables)
        return {"rows": linked[0], "cluster": linked[1]}

    def sets(self, documents: Iterator[Document], shard: Shard, given: Sequence[Path]) -> Arrays:
        """Return the candidates of a shard."""
        clusters = found_in(given[1:], shard.index)
        linked = documents_at(documents, rows_of(clusters["rows"]))
        bands, sets, ids, score = [np.empty((0, self._config.bands), np.uint64)], [], [], []
        for portion in self._portions(linked):
            grams = self._grams([document.text for document in portion])
            bands.append(self._keys(grams).T)
            sets.append(distinct_grams(grams))
            ids += [document.id for document in portion]
            score += [self._score(document) for document in portion]
        fixed = np.full(len(ids), Plan.read(given[0]).protected[shard.index])
        score_array = np.array(score, np.float64)
        candidates = Candidates(
            **clusters, fixed=fixed, score=score_array, bands=np.concatenate(bands)
        )
        return candidate_arrays(candidates, joined(sets), ids)

    def earlier_sets(self, part: int, given: Sequence[Path]) -> Arrays:
        """Return the candidates of a file of an earlier corpus; all of them stay."""
        clusters = found_in(given[1:2], _EARLIER + part)
        bands, sets, ids = read_sets(given[2 + part], rows_of(clusters["rows"]))
        fixed, score = np.ones(len(ids), bool), np.zeros(len(ids))
        return candidate_arrays(
            Candidates(**clusters, fixed=fixed, score=score, bands=bands), sets, ids
        )

    def decide(self, part: int, given: Sequence[Path]) -> Arrays:
        """Return the rows of some clusters that go, the ids of those they equal, and figures."""
        files = CandidateFiles(given[1:], Part(part, Plan.read(given[0]).parts))
        removed, kept, similarity, decided = [], [], [], []
        least = self._config.min_similarity
        for cluster in verify(files.candidates, files.grams, least_similarity=least):
            decided.append(cluster)
            for one in cluster.removed:
                removed.append(one.candidate)
                kept.append(files.id(one.kept))
                similarity.append(one.similarity)
        rows = files.candidates.rows[removed] if removed else np.empty(0, np.uint64)
        order = np.argsort(rows)
        found = {"rows": rows, "kept": as_bytes(kept), "similarity": np.array(similarity)}
        figures = cluster_figures(decided, files, large=self._config.large_cluster)
        return {name: array[order] for name, array in found.items()} | figures

    def index_rows(
        self, documents: Iterator[Document], shard: Shard, given: Sequence[Path]
    ) -> Arrays:
        """Return the index of what stays of a shard."""
        gone = set(rows_of(found_in(given, shard.index)["rows"]).tolist())
        stays = (document for row, document in enumerate(documents) if row not in gone)
        keys, sets, ids = [np.empty((self._config.bands, 0), np.uint64)], [], []
        for portion in self._portions(stays):
            grams = self._grams([document.text for document in portion])
            filled = np.flatnonzero(np.diff(grams.offsets))
            keys.append(self._keys(grams)[:, filled])
            found = distinct_grams(grams)
            sets.append(Sets(found.grams, found.ends[filled]))
            ids += [portion[place].id for place in filled]
        return index_arrays(self._signing, np.concatenate(keys, axis=1), joined(sets), ids)

    def apply(self, documents: Iterator[Document], verdict: Arrays) -> Iterator[Document | Dropped]:
        """Yield the documents, and those as dropped that are like one that stays."""
        likeness = zip(as_texts(verdict["kept"]), verdict["similarity"].tolist(), strict=True)
        gone = dict(zip(rows_of(verdict["rows"]).tolist(), likeness, strict=True))
        for row, document in enumerate(documents):
            if row not in gone:
                yield document
                continue
            kept, similarity = gone[row]
            yield Dropped(document, "near_dedup", f"{similarity:.3f} like {kept}")

    @staticmethod
    def _portions(documents: Iterable[Document]) -> Iterator[list[Document]]:
        return batches(documents, lambda document: len(document.text))

    def _grams(self, texts: Sequence[str]) -> Grams:
        return word_grams(hash_words(texts), self._config.ngram_words)

    def _keys(self, grams: Grams) -> np.ndarray:
        return band_keys(grams, bands=self._config.bands, rows=self._config.rows)

    def _score(self, document: Document) -> float:
        """Return how good a document is: the best of a cluster stays."""
        if self._config.keep == "longest":
            return float(len(document.text))
        if self._config.score is None:
            return 0.0
        value = document.meta.get(self._config.score)
        # A document without the number is worse than all that have it.
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        return -math.inf
