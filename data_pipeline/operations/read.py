"""Read files into document shards: clean texts, each with an id, and what could not be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from data_pipeline.documents import Document
from data_pipeline.engine.isolation.watch import Watch
from data_pipeline.engine.task import Task
from data_pipeline.operations.product import Product
from data_pipeline.readers.formats import path_of_document, read_file
from data_pipeline.readers.listing import Skipped
from data_pipeline.readers.names import readable
from data_pipeline.readers.record import Found, Hashed
from data_pipeline.storage.document_files import DocumentWriter
from data_pipeline.storage.tally import Tally
from maxlm.config.pipeline.raw import RawTextConfig
from maxlm.data.tokenizers import replace_surrogates


def read_files(task: Task, watch: Watch) -> Product:
    """Read the files of `settings.files` into shards of about `settings.shard_bytes` of text."""
    source, raw = task.settings["source"], RawTextConfig.model_validate(task.settings["raw"])
    skipped, tally, inputs = Skipped(), Tally(), list[dict[str, Any]]()
    with _Shards(task) as shards:
        for path, name, *_ in task.settings["files"]:
            inputs.append({"name": readable(name), "bytes": 0, "sha256": "", "documents": 0})
            for document in _documents(path, name, raw, watch, skipped, inputs[-1]):
                document.source, document.id = source, f"{source}/{document.id}"
                if raw.licence and not document.meta.keys() & {"licence", "license"}:
                    document.meta["licence"] = raw.licence
                tally.came(document)
                shards.write(document)
                tally.kept(document)
                inputs[-1]["documents"] += 1
    reasons = {
        reason: {"count": count, "example": skipped.examples[reason]}
        for reason, count in sorted(skipped.counts.items())
    }
    return Product(shards.outputs, {**tally.figures(), "skipped": reasons, "inputs": inputs})


def _documents(
    path: str,
    name: str,
    raw: RawTextConfig,
    watch: Watch,
    skipped: Skipped,
    about: dict[str, Any],
) -> Iterator[Document]:
    """Yield the documents of a file, and put its size and hash into `about`.

    The timer starts anew before the file is opened, at each record, read or not, and at each
    portion that is only hashed.
    """
    records, own_path = read_file(path, name, raw), path_of_document(name, raw.suffixes)
    number = 0
    while True:
        watch.at(number)
        try:
            record = next(records)
        except StopIteration as end:
            about["bytes"], about["sha256"] = end.value
            return
        except OSError:
            skipped.add("unreadable file", name)
            return
        if isinstance(record, Hashed):
            continue
        number += 1
        if not isinstance(record, Found):
            skipped.add(record.reason, name + record.place)
            continue
        if own_path is not None:
            record.meta["path"] = readable(own_path)
        text = replace_surrogates(record.text).replace("\r\n", "\n").replace("\r", "\n")
        if text.strip():
            yield Document(readable(name) + record.place, "", text, record.meta)
        else:
            skipped.add("empty document", name + record.place)


class _Shards:
    """Writes documents into one file after the other, each closed when it is large enough.

    Attributes:
      outputs: the files, with their source and counts.
    """

    def __init__(self, task: Task):
        self._task, self._stack = task, ExitStack()
        self._writer: DocumentWriter | None = None
        self.outputs: dict[Path, Mapping[str, Any]] = {}

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._close()
        else:
            self._stack.__exit__(*error)

    def write(self, document: Document) -> None:
        """Append one document."""
        if self._writer is None:
            self._writer = self._stack.enter_context(DocumentWriter(self._path))
        self._writer.write(document)
        if self._writer.bytes >= self._task.settings["shard_bytes"]:
            self._close()

    @property
    def _path(self) -> Path:
        return self._task.folder / f"{self._task.name}-{len(self.outputs):05d}.parquet"

    def _close(self) -> None:
        if self._writer is not None:
            path = self._path
            self._stack.close()
            self.outputs[path] = {
                "source": self._task.settings["source"],
                "documents": self._writer.documents,
                "text_bytes": self._writer.bytes,
            }
            self._writer = None
