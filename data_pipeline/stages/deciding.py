"""A stage that decides over all shards from keys, then filters each."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.engine.task import Record, Task, runs
from data_pipeline.operations.apply import build_step
from data_pipeline.stages.mapping import APPLY, files_of
from data_pipeline.stages.shards import DocumentShard, Workshop, digest_of
from data_pipeline.steps import STEPS
from data_pipeline.steps.step import Shard
from data_pipeline.storage.arrays import write_arrays
from data_pipeline.storage.whole import file_sha256
from maxlm.config.pipeline.step import StepSection
from maxlm.files import write_whole

DECIDE = "data_pipeline.operations.decide"
DECISION_NAME = "decision.json"

Inputs = tuple[tuple[Path, str], ...]


class Deciding:
    """Carries out a global step: keys of each shard, one decision, a filter of each shard."""

    def __init__(self, name: str, config: StepSection, folder: Path, *, protected: frozenset[str]):
        self.name, self._kind = name, config.kind
        self._section = config.model_dump(mode="json")
        self._files = [sha256 for _, sha256 in files_of(config)]
        self._folder, self._protected = folder / name, protected
        self._modules = (STEPS[config.kind].__module__, APPLY, DECIDE)

    def tasks(self, before: Sequence[DocumentShard]) -> list[Task]:
        """Return a task for each shard; what was decided depends on all of them."""
        about = {
            "step": self._section,
            "files": self._files,
            "protected": sorted(self._protected),
            "all": digest_of(before),
            "sources": [shard.source for shard in before],
            **runs(self._modules),
        }
        decided = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return [
            Task(
                "verdict",
                self._modules,
                self._folder,
                f"{shard.index:06d}",
                {"step": self._section, "source": shard.source},
                ((shard.path, shard.sha256), (self._verdict(shard.index), decided)),
            )
            for shard in before
        ]

    def run(self, before: Sequence[DocumentShard], workshop: Workshop) -> list[Record]:
        """Decide and filter, as far as that was not done yet."""
        tasks = self.tasks(before)
        sizes = {f"{shard.index:06d}": (shard.documents, shard.text_bytes) for shard in before}
        if tasks:
            self._decide(before, tasks[0].inputs[1][1], workshop)
        records = workshop.finish(self._kind, tasks, lambda task: sizes[task.name])
        shutil.rmtree(self._folder / "deciding", ignore_errors=True)
        return records

    def _decide(self, before: Sequence[DocumentShard], decided: str, workshop: Workshop) -> None:
        """Leave a verdict for each shard, and beside it the report and what it took, unless they are
        there. The records of the decision's own tasks go with them.
        """
        mark = self._folder / DECISION_NAME
        is_known = mark.is_file() and json.loads(mark.read_bytes())["decided"] == decided
        if is_known and all(self._verdict(shard.index).is_file() for shard in before):
            return
        mark.unlink(missing_ok=True)
        work = _Work(before, self, workshop)
        began, processor = time.perf_counter(), time.process_time()
        keys = work.over_shards("keys")
        decision = build_step(self._section).reduce(keys, work)
        self._verdict(0).parent.mkdir(exist_ok=True)
        count = 0
        for index, verdict in enumerate(decision.verdicts):
            write_arrays(self._verdict(index), verdict)
            count += 1
        assert count == len(before), f"{self._kind} gave {count} verdicts for {len(before)} shards"
        cost = {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - processor + sum(work.costs["cpu_seconds"]),
            "peak_bytes": max(work.costs["peak_bytes"]),
        }
        known = {"decided": decided, "report": decision.report, "cost": cost}
        text = json.dumps(known, indent=1)
        write_whole(mark, text.encode())

    def report(self) -> dict[str, Any]:
        """Return what the step reported when it decided."""
        found: dict[str, Any] = json.loads((self._folder / DECISION_NAME).read_bytes())["report"]
        return found

    def task(
        self, operation: str, folder: str, name: str, settings: dict[str, Any], inputs: Inputs
    ) -> Task:
        """Return a task of the decision."""
        return Task(
            operation,
            self._modules,
            self._folder / "deciding" / folder,
            name,
            {"step": self._section, "files": self._files, **settings},
            inputs,
        )

    def label(self, method: str) -> str:
        """Return what is shown while a method runs."""
        return f"{self._kind}: {method.replace('_', ' ')}"

    def scratch(self) -> Path:
        """Return an empty folder for the step's own files."""
        folder = self._folder / "deciding" / "own"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    @property
    def protected(self) -> frozenset[str]:
        """Sources whose documents may not be dropped."""
        return self._protected

    def _verdict(self, index: int) -> Path:
        return self._folder / "deciding" / "verdicts" / f"{index:06d}.safetensors"


class _Work:
    """What a global step may ask for while it decides (`data_pipeline.steps.step.Work`)."""

    def __init__(self, before: Sequence[DocumentShard], stage: Deciding, workshop: Workshop):
        self.shards = [Shard(one.index, one.source, one.documents) for one in before]
        self.protected, self.folder = stage.protected, stage.scratch()
        self.memory_bytes = workshop.memory_bytes
        self._before, self._stage, self._workshop, self._calls = before, stage, workshop, 0
        self._hashes: dict[Path, str] = {}
        self.costs: dict[str, list[float]] = {"cpu_seconds": [], "peak_bytes": []}

    def over_shards(self, method: str, *, given: Sequence[Path] = ()) -> list[Path]:
        """Call a method for every shard; return the files of its arrays."""
        folder, inputs = self._next(method), self._hashed(given)
        tasks = []
        for one, shard in zip(self._before, self.shards, strict=True):
            about = {"index": shard.index, "source": shard.source, "documents": shard.documents}
            settings = {"method": method, "shard": about}
            task = self._stage.task(
                "over_shard",
                folder,
                f"{shard.index:06d}",
                settings,
                ((one.path, one.sha256), *inputs),
            )
            tasks.append(task)
        sizes = {
            task.name: (one.documents, one.text_bytes)
            for task, one in zip(tasks, self._before, strict=True)
        }
        return self._finish(method, tasks, sizes)

    def over_parts(self, method: str, count: int, *, given: Sequence[Path] = ()) -> list[Path]:
        """Call a method for every part; return the files of its arrays."""
        folder, inputs = self._next(method), self._hashed(given)
        tasks = [
            self._stage.task(
                "over_part", folder, f"{part:06d}", {"method": method, "part": part}, inputs
            )
            for part in range(count)
        ]
        return self._finish(method, tasks, {task.name: (0, 0) for task in tasks})

    def _next(self, method: str) -> str:
        self._calls += 1
        return f"{self._calls:02d}-{method}"

    def _finish(
        self, method: str, tasks: Sequence[Task], sizes: dict[str, tuple[int, int]]
    ) -> list[Path]:
        label = self._stage.label(method)
        records = self._workshop.finish(label, tasks, lambda task: sizes[task.name])
        for name, values in self.costs.items():
            values += [record.cost[name] for record in records]
        files = [record.outputs[0] for record in records]
        self._hashes |= {file.path: file.sha256 for file in files}
        return [file.path for file in files]

    def _hashed(self, given: Sequence[Path]) -> Inputs:
        """Return files with their hashes; none is read twice for them."""
        for path in given:
            if path not in self._hashes:
                self._hashes[path] = file_sha256(path)
        return tuple((path, self._hashes[path]) for path in given)
