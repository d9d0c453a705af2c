"""The first stage: the sources' files to document shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from data_pipeline.engine.task import Record, Task
from data_pipeline.readers.listing import InputFile
from data_pipeline.stages.shards import DocumentShard, Workshop
from maxlm.config.pipeline.raw import RawTextConfig

MODULE = "data_pipeline.operations.read"
FEWEST_SHARDS, LEAST_BYTES = 16, 10**6  # a small corpus is work for several processes, too
MOST_FILES = 10_000  # of a task: its settings hold their names


WHAT_READING_NEEDS = {"kind", "suffixes", "text_key", "meta_keys", "licence"}


class Reading:
    """Reads the files of each source, in the order of the sources; a task reads as many small files
    as make a shard, or one large one.
    """

    name = "00-read"

    def __init__(
        self,
        inputs: Mapping[str, Sequence[InputFile]],
        raws: Mapping[str, RawTextConfig],
        workshop: Workshop,
    ):
        self._folder = workshop.folder / self.name
        size = sum(file.bytes for files in inputs.values() for file in files)
        self._shard_bytes = min(workshop.shard_bytes, max(size // FEWEST_SHARDS, LEAST_BYTES))
        self._groups = [
            (source, list(group))
            for source, files in inputs.items()
            for group in _groups(files, self._shard_bytes)
        ]
        self._raws = {
            name: raw.model_dump(mode="json", include=WHAT_READING_NEEDS)
            for name, raw in raws.items()
        }

    def tasks(self, before: Sequence[DocumentShard]) -> list[Task]:
        """Return a task for each group of files."""
        del before
        return [
            self._task(number, source, files) for number, (source, files) in enumerate(self._groups)
        ]

    def run(self, before: Sequence[DocumentShard], workshop: Workshop) -> list[Record]:
        """Read what was not read yet."""
        sizes = {
            f"{number:06d}": sum(file.bytes for file in files)
            for number, (_, files) in enumerate(self._groups)
        }

        def units(task: Task) -> tuple[int, int]:
            # How many documents a file has is known when it was read.
            record = task.record(with_outputs=False)
            return 0 if record is None else record.figures["documents_out"], sizes[task.name]

        return workshop.finish("read", self.tasks(before), units)

    def _task(self, number: int, source: str, files: Sequence[InputFile]) -> Task:
        settings = {
            "source": source,
            "raw": self._raws[source],
            "files": [list(file) for file in files],
            "shard_bytes": self._shard_bytes,
        }
        return Task("read", (MODULE,), self._folder, f"{number:06d}", settings)


def _groups(files: Sequence[InputFile], size: int) -> Iterator[list[InputFile]]:
    group: list[InputFile] = []
    for file in files:
        if group and (
            len(group) == MOST_FILES or sum(one.bytes for one in group) + file.bytes > size
        ):
            yield group
            group = []
        group.append(file)
    if group:
        yield group
