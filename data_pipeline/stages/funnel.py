"""What became of the documents on their way through the stages, source by source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.engine.task import Record
from data_pipeline.readers.listing import Skipped
from data_pipeline.stages.deciding import Deciding
from data_pipeline.stages.shards import DocumentShard, Stage, shards_of
from data_pipeline.storage.tally import DROPPED_SCHEMA, add_up
from data_pipeline.storage.whole import written_whole

LOG_SCHEMA = pa.schema([("step", pa.string()), *DROPPED_SCHEMA])


class Funnel:
    """The records of finished stages, by source.

    Attributes:
      sources: their names.
    """

    def __init__(self, stages: Sequence[Stage], skipped: Mapping[str, Skipped]):
        self.sources = list(skipped)
        self._skipped, self._stages = skipped, stages
        self._records: list[list[tuple[str, Record]]] = []
        shards: list[DocumentShard] = []
        for stage in stages:
            tasks = stage.tasks(shards)
            found = [(task.settings["source"], task.record(with_outputs=False)) for task in tasks]
            known = [(source, record) for source, record in found if record is not None]
            assert len(known) == len(found), f"{stage.name} is not finished"
            self._records.append(known)
            shards = shards_of(record for _, record in known)

    def reading(self, source: str) -> dict[str, Any]:
        """Return how many documents were read, and what was skipped, with the name of the first."""
        records = self._of(0, source)
        total = Skipped(dict(self._skipped[source].counts), dict(self._skipped[source].examples))
        for record in records:
            for reason, about in record.figures["skipped"].items():
                total.counts[reason] = total.counts.get(reason, 0) + about["count"]
                total.examples.setdefault(reason, about["example"])
        skipped = {
            reason: {"count": count, "example": total.examples[reason]}
            for reason, count in sorted(total.counts.items())
        }
        documents = sum(record.figures["documents_out"] for record in records)
        return {"documents": documents, "skipped": skipped}

    def inputs(self, source: str) -> list[dict[str, Any]]:
        """Return the files that were read: name, bytes, sha256, documents."""
        return [one for record in self._of(0, source) for one in record.figures["inputs"]]

    def steps(self, source: str) -> list[dict[str, Any]]:
        """Return, for reading and each step, what went in, what came out, and why not; with
        samples.
        """
        return [
            {"step": stage.name, **add_up(record.figures for record in self._of(number, source))}
            for number, stage in enumerate(self._stages)
        ]

    def losses(self, source: str) -> str:
        """Say for which reasons how many documents were dropped, with a detail of each."""
        return "; ".join(
            f"{step['step']} dropped {count:,} as {reason}"
            + (f", such as {detail}" if (detail := step["samples"][reason][0]["detail"]) else "")
            for step in self.steps(source)
            for reason, count in step["reasons"].items()
        )

    def decisions(self) -> dict[str, Any]:
        """Return what global steps report of all sources together."""
        return {stage.name: stage.report() for stage in self._stages if isinstance(stage, Deciding)}

    def write_dropped(self, source: str, path: Path) -> None:
        """Write which documents were dropped, by which step, and why."""
        with (
            written_whole(path) as unfinished,
            pq.ParquetWriter(unfinished, LOG_SCHEMA, compression="zstd") as log,
        ):
            for number, stage in enumerate(self._stages):
                for record in self._of(number, source):
                    for file in record.outputs:
                        if not file.about:
                            table = pq.read_table(file.path)
                            steps = pa.array([stage.name] * table.num_rows, pa.string())
                            log.write_table(table.add_column(0, "step", steps))

    def write_report(self, source: str, path: Path) -> None:
        """Write the steps of a source and the decisions of all, for people and the data card."""
        about = {"steps": self.steps(source), "decisions": self.decisions()}
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def write_inputs(self, source: str, path: Path) -> None:
        """Write the files that were read, a line of JSON each."""
        with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(one) + "\n" for one in self.inputs(source))

    def _of(self, number: int, source: str) -> list[Record]:
        return [record for name, record in self._records[number] if name == source]
