"""What a task may take of time and memory, and how it is run again after it took more.

A task that fails runs again alone, its step given one document at a time. If it fails at a document
then, it is run without that document, which is counted and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from data_pipeline.engine.task import Task
from maxlm.config.errors import RunFailedError, UserError

MOST_SET_ASIDE = 100  # of one task; more of them are the step's fault, not the documents'
NOWHERE = -1  # the place of a task that is at no document
BY_DOCUMENT = ("step",)  # operations that can leave out a document

End = Literal["done", "mistake", "error", "memory", "time", "lost"]
"""How a task ended: well, by a mistake of the user's, by an exception, because it took too much
memory or too long at a document, or with its process for another reason."""


class DeviceMemoryError(MemoryError):
    """An accelerator has not the memory that a model takes."""


class Outcome(NamedTuple):
    """How a task ended, at which document, and what is to be said of it."""

    end: End
    place: int = NOWHERE
    text: str = ""


@dataclass(frozen=True)
class Limits:
    """What a task may take, and how it is run after it took more.

    Attributes:
      memory_bytes: beyond what its process has when it starts.
      document_seconds: at one document.
      one_by_one: give a step one document at a time, so that the one at fault is known.
      set_aside: places of documents that are left out, and why.
    """

    memory_bytes: int
    document_seconds: float
    one_by_one: bool = False
    set_aside: Mapping[int, str] = field(default_factory=dict)

    def after(self, outcome: Outcome, task: Task) -> Limits:
        """Return the limits of the next try of a task that did not end well.

        Raises:
          UserError: the user made a mistake.
          RunFailedError: the task failed alone, and not at a document; or at too many.
        """
        if outcome.end == "mistake":
            raise UserError(outcome.text)
        if not self.one_by_one:
            return replace(self, one_by_one=True)
        what, where = self._explain(outcome), "also when it ran alone"
        model = task.settings.get("step", {}).get("checkpoint")
        if model is not None and outcome.end in ("memory", "lost"):
            # No document's fault: a model takes the same for all of them.
            raise RunFailedError(
                f"{task.label}: {what}, {where}; {_smaller(task.settings['step'])}"
            )
        if outcome.place != NOWHERE and task.operation in BY_DOCUMENT:
            if len(self.set_aside) < MOST_SET_ASIDE:
                return replace(self, set_aside={**self.set_aside, outcome.place: what})
            where = f"at more than {MOST_SET_ASIDE} documents"
        elif outcome.place != NOWHERE:
            where = f"at document {outcome.place + 1}{_files(task)}, {where}"
        raise RunFailedError(f"{task.label}: {what}, {where}; {self._cure(outcome)}")

    def to_json(self) -> dict[str, Any]:
        """Return the limits as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Limits:
        """Return the limits of JSON, whose keys are texts."""
        set_aside = {int(place): why for place, why in values["set_aside"].items()}
        return cls(**{**values, "set_aside": set_aside})

    def _explain(self, outcome: Outcome) -> str:
        return {
            "memory": outcome.text or f"it takes more than {self.memory_bytes // 2**20} MiB",
            "time": f"it takes longer than {self.document_seconds:g} s",
        }.get(outcome.end, outcome.text)

    def _cure(self, outcome: Outcome) -> str:
        return {
            "memory": "raise data.pipeline.engine.memory_mb",
            "time": "raise data.pipeline.engine.document_seconds",
        }.get(outcome.end, "see the message, and run it again: what is finished is kept")


def _files(task: Task) -> str:
    """Say which files a task reads, if it reads some."""
    names = [name for _, name, *_ in task.settings.get("files", ()) if task.operation == "read"]
    if len(names) > 1:
        return f" of {len(names):,} files from {names[0]} to {names[-1]}"
    return f" of {names[0]}" if names else ""


def _smaller(step: Mapping[str, Any]) -> str:
    """Say which settings make a step with a trained model take less, and what gives it more."""
    model = step["checkpoint"]
    sizes = {
        "checkpoint.rows": model.get("rows"),
        "checkpoint.max_tokens": model.get("max_tokens"),
        "batch": step.get("batch"),
        "max_tokens": step.get("max_tokens"),
    }
    names = " or ".join(f"{name}={size}" for name, size in sizes.items() if size is not None)
    return (
        f"lower {names} of the step {step['kind']}, raise data.pipeline.engine.memory_mb, or, where "
        "several share an accelerator, set data.pipeline.engine.workers=1"
    )
