"""Methods of a global step, each called for one shard or for one part, whose arrays are kept."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.documents import Document
from data_pipeline.engine.isolation.watch import Watch
from data_pipeline.engine.task import Task
from data_pipeline.operations.apply import step_of
from data_pipeline.operations.product import Product
from data_pipeline.steps.step import Arrays, Shard
from data_pipeline.storage.arrays import write_arrays
from data_pipeline.storage.document_files import read_documents


def over_shard(task: Task, watch: Watch) -> Product:
    """Call `METHOD(documents, shard, given)` of a step."""
    shard, *given = task.paths
    method = getattr(step_of(task), task.settings["method"])

    def documents() -> Iterator[Document]:
        for place, document in enumerate(read_documents(shard)):
            watch.at(place)
            yield document
        watch.at_none()

    return _write(task, method(documents(), Shard(**task.settings["shard"]), given))


def over_part(task: Task, watch: Watch) -> Product:
    """Call `METHOD(part, given)` of a step."""
    del watch
    method = getattr(step_of(task), task.settings["method"])
    return _write(task, method(task.settings["part"], task.paths))


def _write(task: Task, arrays: Arrays) -> Product:
    path = task.folder / f"{task.name}.safetensors"
    write_arrays(path, arrays)
    return Product({path: {}}, {})
