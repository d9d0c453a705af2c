"""Apply a step to a shard: documents in, documents out, and why the others are not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import TypeAdapter

from data_pipeline.documents import Document, Dropped
from data_pipeline.engine.isolation.limits import MOST_SET_ASIDE
from data_pipeline.engine.isolation.watch import Watch
from data_pipeline.engine.task import Task
from data_pipeline.operations.product import Product
from data_pipeline.steps import STEPS
from data_pipeline.storage.arrays import read_arrays
from data_pipeline.storage.document_files import DocumentWriter, read_documents
from data_pipeline.storage.tally import Tally
from maxlm.config.errors import UserError
from maxlm.config.pipeline import PipelineStep

SET_ASIDE = "set_aside"  # the reason of documents that a step cannot work on

_SECTION: TypeAdapter[Any] = TypeAdapter(PipelineStep)


_HELD: list[tuple[Any, Any]] = []  # what this process's last step was made of, and the step


def build_step(section: dict[str, Any]) -> Any:
    """Return the step of a section, as JSON."""
    config = _SECTION.validate_python(section)
    return STEPS[config.kind](config)


def step_of(task: Task) -> Any:
    """Return the step of a task, that of this process's task before it if both have the same: models,
    lists and benchmarks are read once and not for every shard.
    """
    section, hashes = task.settings["step"], [sha256 for _, sha256 in task.inputs[1:]]
    known = STEPS[section["kind"]], json.dumps([section, task.settings.get("files"), hashes])
    if not _HELD or _HELD[0][0] != known:
        forget_step()  # before another model is loaded
        _HELD.append((known, build_step(section)))
    return _HELD[0][1]


def forget_step() -> None:
    """Let go of the step of the task before: its model is memory that a task may need."""
    _HELD.clear()


def apply_step(task: Task, watch: Watch) -> Product:
    """Map a shard's documents with a step."""
    step, tally = step_of(task), Tally()
    given = _given(task, watch, tally)
    if watch.limits.one_by_one:
        return _write(task, _one_by_one(step, given), tally)
    return _write(task, step(given), tally)


def apply_verdict(task: Task, watch: Watch) -> Product:
    """Filter a shard's documents as a global step has decided.

    None is set aside: the verdict speaks of documents by their number.
    """
    step, tally = step_of(task), Tally()
    shard, verdict = task.paths

    def given() -> Iterator[Document]:
        for place, document in enumerate(read_documents(shard)):
            tally.came(document)
            watch.at(place)
            yield document

    return _write(task, step.apply(given(), read_arrays(verdict)), tally)


def _given(task: Task, watch: Watch, tally: Tally) -> Iterator[Document]:
    """Yield the shard's documents but those that are set aside, and start the timer at each."""
    for place, document in enumerate(read_documents(task.paths[0])):
        tally.came(document)
        why = watch.limits.set_aside.get(place)
        if why is not None:
            tally.dropped(Dropped(document, SET_ASIDE, why))
        else:
            watch.at(place)
            yield document


def _one_by_one(
    step: Callable[[Iterator[Document]], Iterator[Document | Dropped]],
    documents: Iterator[Document],
) -> Iterator[Document | Dropped]:
    """Map each document by itself; one at which the step raises is set aside."""
    failed = 0
    for document in documents:
        try:
            yield from list(step(iter([document])))
        except (MemoryError, UserError):
            raise
        except Exception as error:
            failed += 1
            if failed > MOST_SET_ASIDE:
                raise
            yield Dropped(document, SET_ASIDE, f"{type(error).__name__}: {error}")


def _write(task: Task, results: Iterable[Document | Dropped], tally: Tally) -> Product:
    path = task.folder / f"{task.name}.parquet"
    with DocumentWriter(path) as writer:
        for result in results:
            if isinstance(result, Dropped):
                tally.dropped(result)
            else:
                writer.write(result)
                tally.kept(result)
    dropped = task.folder / f"{task.name}.dropped.parquet"
    tally.write_dropped(dropped)
    about = {
        "source": task.settings["source"],
        "documents": writer.documents,
        "text_bytes": writer.bytes,
    }
    return Product({path: about, dropped: {}}, tally.figures())
