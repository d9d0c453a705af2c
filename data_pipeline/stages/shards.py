"""Shards of documents between stages, and the place where the work on them is done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from data_pipeline.engine.engine import Engine
from data_pipeline.engine.task import Record, Task
from data_pipeline.report import Report
from maxlm.config.errors import RunFailedError

Units = Callable[[Task], tuple[int, int]]
"""Documents and bytes that a task works on."""


@dataclass(frozen=True)
class DocumentShard:
    """A file of documents of one source: its number, place, hash and counts."""

    index: int
    path: Path
    sha256: str
    source: str
    documents: int
    text_bytes: int


def shards_of(records: Iterable[Record]) -> list[DocumentShard]:
    """Return the shards that tasks wrote, in the order of the tasks."""
    files = [file for record in records for file in record.outputs if "documents" in file.about]
    return [
        DocumentShard(index, file.path, file.sha256, **file.about)
        for index, file in enumerate(files)
    ]


def digest_of(shards: Iterable[DocumentShard]) -> str:
    """Return a hash of all shards' contents."""
    return hashlib.sha256("\n".join(shard.sha256 for shard in shards).encode()).hexdigest()


@dataclass(frozen=True)
class Workshop:
    """Where the stages work, and who does it.

    Attributes:
      folder: for the files between the stages.
      memory_bytes: that a task may take.
      shard_bytes: of text, in a shard that is read.
      shard_tokens: after which a token shard is closed.
      keep_steps: leave the documents of every step where they are.
      known: shards of the stages that are finished, by their names: each stage asks for those of all
        before it, and their records are long.
    """

    folder: Path
    engine: Engine
    report: Report
    memory_bytes: int
    shard_bytes: int
    keep_steps: bool
    shard_tokens: int
    known: dict[str, list[DocumentShard]] = field(default_factory=dict)

    def finish(
        self, label: str, tasks: Sequence[Task], units: Units, *, with_outputs: bool = True
    ) -> list[Record]:
        """Run those tasks that are not finished, show how far they are, and return all records.

        Raises:
          RunFailedError: they were done by other code than this process has.
        """
        missing = [task for task in tasks if task.record(with_outputs=with_outputs) is None]
        for folder in {task.folder for task in missing}:
            folder.mkdir(parents=True, exist_ok=True)
        if missing:
            sizes = [units(task) for task in missing]
            documents, size = (sum(column) for column in zip(*sizes, strict=True))
            with self.report.progress(label, documents, size) as advance:
                self.engine.run(missing, lambda task: advance(*units(task)))
        records = [task.record(with_outputs=with_outputs) for task in tasks]
        found = [record for record in records if record is not None]
        if len(found) < len(records):
            raise RunFailedError(
                f"{label}: tasks were done by other code or libraries than this process has; run it again if something "
                "was installed meanwhile, and give all machines the same versions"
            )
        return found


class Stage(Protocol):
    """A stage whose tasks write document shards.

    Attributes:
      name: of its folder.
    """

    name: str

    def tasks(self, before: Sequence[DocumentShard]) -> list[Task]:
        """Return its tasks, for the shards of the stage before."""
        ...

    def run(self, before: Sequence[DocumentShard], workshop: Workshop) -> list[Record]:
        """Finish its tasks; the shards of the stage before are there."""
        ...


def documents_of(stages: Sequence[Stage], workshop: Workshop) -> list[DocumentShard]:
    """Return the shards of the last stage; what is finished is not done again.

    Once a stage is finished, the documents of the one before go, unless steps are kept; their
    records stay, so that a later run knows what was done.
    """
    *earlier, last = stages
    before = shards_known(earlier, workshop) if earlier else []
    tasks = last.tasks(before)
    if any(task.record() is None for task in tasks):
        before = documents_of(earlier, workshop) if earlier else []
        records = last.run(before, workshop)
    else:
        records = [record for task in tasks if (record := task.record())]
    if not workshop.keep_steps:
        for shard in before:
            shard.path.unlink(missing_ok=True)
    workshop.known[last.name] = shards_of(records)
    return workshop.known[last.name]


def shards_known(stages: Sequence[Stage], workshop: Workshop) -> list[DocumentShard]:
    """Return the shards of the last stage, whether or not their files are still there."""
    *earlier, last = stages
    if last.name in workshop.known:
        return workshop.known[last.name]
    before = shards_known(earlier, workshop) if earlier else []
    records = [task.record(with_outputs=False) for task in last.tasks(before)]
    if any(record is None for record in records):
        return documents_of(stages, workshop)
    workshop.known[last.name] = shards_of(record for record in records if record is not None)
    return workshop.known[last.name]
