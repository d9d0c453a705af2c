"""A stage that maps each shard by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.engine.task import Record, Task
from data_pipeline.stages.shards import DocumentShard, Workshop
from data_pipeline.steps import STEPS
from data_pipeline.storage.whole import file_sha256
from maxlm.config.errors import UserError
from maxlm.config.pipeline.step import StepSection

APPLY = "data_pipeline.operations.apply"
MODEL = "maxlm.decoding.model"  # the code of a trained model, which is not named by an import


class MappingStage:
    """Applies a step to every shard."""

    def __init__(self, name: str, config: StepSection, folder: Path):
        self.name, self._kind = name, config.kind
        self._section = config.model_dump(mode="json")
        self._folder = folder / name
        self._files = files_of(config)
        model = () if config.trained_model is None else (MODEL,)
        self._modules = (STEPS[config.kind].__module__, APPLY, *model)

    def tasks(self, before: Sequence[DocumentShard]) -> list[Task]:
        """Return a task for each shard."""
        return [
            Task(
                "step",
                self._modules,
                self._folder,
                f"{shard.index:06d}",
                {"step": self._section, "source": shard.source},
                ((shard.path, shard.sha256), *self._files),
            )
            for shard in before
        ]

    def run(self, before: Sequence[DocumentShard], workshop: Workshop) -> list[Record]:
        """Apply the step where that was not done yet."""
        sizes = {f"{shard.index:06d}": (shard.documents, shard.text_bytes) for shard in before}
        return workshop.finish(self._kind, self.tasks(before), lambda task: sizes[task.name])


def files_of(config: StepSection) -> tuple[tuple[Path, str], ...]:
    """Return the files beside the documents that a step reads, with their hashes.

    Raises:
      UserError: one cannot be read.
    """
    return tuple((Path(path), _sha256(path)) for path in config.files())


def _sha256(name: str) -> str:
    try:
        return file_sha256(Path(name))
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}; give another path") from None
