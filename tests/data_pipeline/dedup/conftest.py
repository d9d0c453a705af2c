"""An engine of one process, for the steps that decide over all shards."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.step import Shard
from data_pipeline.storage.arrays import write_arrays


class Work:
    """Runs a step's rounds in order, in this process, over files as an engine does."""

    def __init__(self, step, shards, folder, *, protected=(), memory_bytes=2**30):
        self.step, self.documents, self.root = step, shards, folder
        self.folder = folder / "own"
        self.folder.mkdir()
        self.protected, self.memory_bytes = frozenset(protected), memory_bytes
        self.shards = [
            Shard(index, shard[0].source if shard else "empty", len(shard))
            for index, shard in enumerate(shards)
        ]
        self.rounds = {}

    def _stored(self, name, arrays):
        path = self.root / name
        write_arrays(path, arrays)
        return path

    def over_shards(self, method, *, given=()):
        self.rounds[method] = len(self.shards)
        run = getattr(self.step, method)
        return [
            self._stored(f"{method}-{shard.index}", run(iter(documents), shard, list(given)))
            for shard, documents in zip(self.shards, self.documents, strict=True)
        ]

    def over_parts(self, method, count, *, given=()):
        self.rounds[method] = count
        run = getattr(self.step, method)
        return [self._stored(f"{method}-{part}", run(part, list(given))) for part in range(count)]


class Outcome:
    """What a step made of the shards: documents and dropped ones by shard, and its report."""

    def __init__(self, step, work, *, files):
        decision = step.reduce(files, work)
        self.report = decision.report
        self.out = [
            list(step.apply(iter(documents), verdict))
            for documents, verdict in zip(work.documents, decision.verdicts, strict=True)
        ]
        self.kept = [one for shard in self.out for one in shard if isinstance(one, Document)]
        self.dropped = [one for shard in self.out for one in shard if isinstance(one, Dropped)]


@pytest.fixture
def run_step(tmp_path):
    count = iter(range(10**6))

    def run(step, shards, **work):
        folder = Path(tmp_path / f"run{next(count)}")
        folder.mkdir()
        work = Work(step, shards, folder, **work)
        outcome = Outcome(step, work, files=work.over_shards("keys"))
        outcome.rounds = work.rounds
        return outcome

    return run


@pytest.fixture
def in_shards():
    """Make documents of texts and deal them out to shards."""

    def deal(texts, shards=1, source="web"):
        documents = [
            Document(f"{source}/{place}", source, text) for place, text in enumerate(texts)
        ]
        ends = np.linspace(0, len(documents), shards + 1).astype(int)
        return [documents[a:b] for a, b in pairwise(ends)]

    return deal
