"""Settings of trained models that steps of the text pipeline ask, and which files say what they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.filters.word_list import MissingFileProblem
from maxlm.config.section import Count, Section


class CheckpointSection(Section):
    """A trained model: a run directory, or a folder of published weights."""

    path: str = Field(description="run_dir of a run, or a folder with config.json and weights")
    step: Count | None = Field(None, description="of a run's checkpoint (null: the newest)")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="of weights and activations (null: that of its training)"
    )

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield that there is no such model.

        Args:
          path: where the section stands.
        """
        if not any(self.files()):
            what = f"checkpoint of step {self.step}" if self.step is not None else "model"
            yield MissingFileProblem(
                f"{path}.path",
                f"{path}.path={self.path!r}: there is no {what}; give the run_dir of a trained run, or a folder of "
                "published weights",
            )

    @property
    def chosen_step(self) -> int | None:
        """Return the step that is meant, None of published weights."""
        steps = _steps(self._checkpoints)
        return self.step if self.step is not None else max(steps, default=None)

    def files(self) -> Iterator[str]:
        """Yield files that say which model it is: of a checkpoint its record, which has hashes of all
        parameters and of the tokenizer; of published weights all.
        """
        step, folder = self.chosen_step, Path(self.path)
        if step is not None:
            record = _steps(self._checkpoints).get(step)
            if record is not None:
                yield str(record)
        elif (folder / "config.json").is_file():
            yield from sorted(str(path) for path in folder.iterdir() if path.is_file())

    @property
    def _checkpoints(self) -> Path:
        folder = Path(self.path) / "checkpoints"
        return folder if folder.is_dir() else Path(self.path)


class ScoringCheckpoint(CheckpointSection):
    """A trained model that reads texts: documents are put into rows of one length, several in a row,
    so that one program does for all.
    """

    max_tokens: Annotated[int, Field(ge=2, le=2**20)] = Field(
        1024, description="tokens of a document that it reads, from the start"
    )
    rows: Annotated[int, Field(ge=1, le=4096)] = Field(
        8, description="rows of max_tokens that it reads at a time"
    )


def _steps(folder: Path) -> dict[int, Path]:
    """Return the record of each whole checkpoint in a folder, by its step."""
    records = folder.glob("*/record/record.json") if folder.is_dir() else ()
    return {int(p.parts[-3]): p for p in records if p.parts[-3].isdecimal()}
