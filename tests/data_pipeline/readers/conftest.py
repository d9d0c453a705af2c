"""Read files as `maxlm prepare` reads them, within this process."""

import json
from dataclasses import dataclass, field

import pytest

from data_pipeline.engine.isolation.limits import Limits
from data_pipeline.engine.isolation.watch import Watch
from data_pipeline.engine.task import Task
from data_pipeline.operations import perform
from data_pipeline.readers.listing import Skipped, list_inputs
from data_pipeline.storage.document_files import read_documents
from maxlm.config.pipeline.raw import RawTextConfig


@dataclass
class ReadFiles:
    """Documents, what was skipped while listing and reading, and the record's figures."""

    documents: list
    skipped: Skipped
    figures: dict = field(default_factory=dict)

    @property
    def texts(self):
        return [document.text for document in self.documents]

    @property
    def names(self):
        return [document.id.removeprefix("source/") for document in self.documents]


@pytest.fixture
def read(tmp_path_factory):
    """Return a function that reads paths, all in one task."""

    def reading(*paths, kind="files", shard_bytes=10**7, **settings):
        raw = RawTextConfig(kind=kind, paths=tuple(map(str, paths)), **settings)
        skipped = Skipped()
        files = [list(file) for file in list_inputs(raw, skipped)]
        about = {
            "source": "source",
            "raw": raw.model_dump(mode="json"),
            "files": files,
            "shard_bytes": shard_bytes,
        }
        folder = tmp_path_factory.mktemp("read")
        task = Task("read", ("data_pipeline.operations.read",), folder, "000000", about)
        task = Task.from_json(task.to_json())  # as a process gets it
        perform(task, Watch(Limits(2**30, 60.0)))
        record = task.record()
        for reason, one in record.figures["skipped"].items():
            skipped.counts[reason] = skipped.counts.get(reason, 0) + one["count"]
            skipped.examples.setdefault(reason, one["example"])
        documents = [one for file in record.outputs for one in read_documents(file.path)]
        assert [
            file.about["documents"] for file in record.outputs if not file.about["documents"]
        ] == []
        return ReadFiles(documents, skipped, json.loads(json.dumps(record.figures)))

    return reading
