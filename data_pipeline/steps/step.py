"""What a step is: a map of one shard's documents, or a decision over all shards that each shard is
then filtered by.

A step is made in every process that works on its tasks, from its section of the YAML alone, so it
must be cheap to make or load what it needs on first use. It serves several tasks, and keeps nothing of
the documents of one for the next. It is deterministic: the same documents and settings give the same
output, in any process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from data_pipeline.documents import Document, Dropped
from maxlm.config.errors import Problem, UserError

Arrays = Mapping[str, np.ndarray]
"""Named arrays of numbers, stored as one safetensors file (`data_pipeline.storage.arrays`)."""


class Step(Protocol):
    """Maps the documents of one shard, in their order.

    What it yields for a document may not depend on the documents around it: the engine may hand it
    one document at a time, to find the one that takes all memory.
    """

    def __init__(self, config: Any, /) -> None: ...

    def __call__(self, documents: Iterator[Document], /) -> Iterator[Document | Dropped]:
        """Yield what becomes of each document: kept, changed, several, or dropped."""
        ...


@dataclass(frozen=True)
class Shard:
    """One shard of a global step's input: its number from 0, its source, its documents' number."""

    index: int
    source: str
    documents: int


class Work(Protocol):
    """What the engine does for a global step while it decides.

    Attributes:
      shards: the step's input, in order; a shard holds documents of one source.
      protected: sources whose documents may not be dropped, as they are published already.
      folder: an empty folder for files of the step's own, which goes when it has decided.
      memory_bytes: how much memory one task, and `reduce` itself, may take.
    """

    shards: Sequence[Shard]
    protected: frozenset[str]
    folder: Path
    memory_bytes: int

    def over_shards(self, method: str, *, given: Sequence[Path] = ()) -> list[Path]:
        """Call `step.METHOD(documents, shard, given) -> Arrays` for every shard, in parallel.

        Args:
          method: the name of a public method of the step.
          given: files that it reads; their contents count for whether it was done already.

        Returns:
          A safetensors file for each shard, in order.
        """
        ...

    def over_parts(self, method: str, count: int, *, given: Sequence[Path] = ()) -> list[Path]:
        """Call `step.METHOD(part, given) -> Arrays` for part 0 to count - 1, in parallel."""
        ...


class Decision(NamedTuple):
    """What a global step decided.

    Attributes:
      verdicts: for each shard, in order, what `apply` needs of it; an iterator holds one at a time.
      report: figures for the data card, as JSON.
    """

    verdicts: Iterator[Arrays]
    report: dict[str, Any]


class GlobalStep(Protocol):
    """Decides over all documents from fixed-size keys; text never leaves its shard.

    The engine calls `keys` for each shard, `reduce` once, and `apply` for each shard.
    """

    def __init__(self, config: Any, /) -> None: ...

    def keys(self, documents: Iterator[Document], shard: Shard, given: Sequence[Path], /) -> Arrays:
        """Return the keys of a shard's documents (`given` is empty)."""
        ...

    def reduce(self, keys: Sequence[Path], work: Work, /) -> Decision:
        """Decide; `keys` are the files of each shard's keys, in order.

        It runs in the process that leads; what takes long or much memory is a method of its own,
        run by `work.over_shards` or `work.over_parts`, each of which is redone only if it was not
        finished.
        """
        ...

    def apply(
        self, documents: Iterator[Document], verdict: Arrays, /
    ) -> Iterator[Document | Dropped]:
        """Yield what becomes of each document of a shard."""
        ...


@runtime_checkable
class Checkable(Protocol):
    """A step that needs more than documents: files, models, libraries."""

    def problems(self, path: str, /) -> Iterator[Problem]:
        """Open what it needs, and yield what would stop it, whatever the documents are: a file that
        is damaged, a list without an entry, a model of another kind.

        Args:
          path: where the step's section stands, such as data.pipeline.steps.0.
        """
        ...


def problem_of(path: str, read: Callable[[], object]) -> Iterator[Problem]:
    """Yield what is wrong with what a setting names, if reading it raises.

    Args:
      path: of the setting.
      read: opens what it names.
    """
    try:
        read()
    except UserError as error:
        yield Problem(path, f"{path}: {error}")
