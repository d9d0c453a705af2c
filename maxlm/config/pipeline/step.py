"""Settings that every step of the text pipeline has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator, Field

from maxlm.config.errors import Problem
from maxlm.config.section import Name, Section, as_tuple

if TYPE_CHECKING:
    from maxlm.config.pipeline.checkpoint import CheckpointSection
    from maxlm.config.schema import DataConfig


class StepSection(Section):
    """The settings of a kind of step; the base of all.

    Attributes:
      kind: the name of the kind, by which the step is found.
    """

    kind: str

    @property
    def changes_text(self) -> bool:
        """Return whether texts are other ones behind it: places that an earlier step has marked
        would be others.
        """
        return False

    @property
    def trained_model(self) -> CheckpointSection | None:
        """Return the trained model that the step runs, if it does."""
        return None

    def behind(self) -> Iterator[StepSection]:
        """Yield steps that belong to this one and are carried out right behind it."""
        yield from ()

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield what is wrong between its settings, and with those of the run's data.

        Args:
          path: where the section stands, such as data.pipeline.steps.0.
          data: the run's data: its sources, its tokenizer.
        """
        del path, data
        yield from ()

    def files(self) -> Iterator[str]:
        """Yield the files beside the documents that the step reads: a change of one is another step."""
        yield from ()


def changes_behind(path: str, data: DataConfig) -> Iterator[Problem]:
    """Yield the steps behind one that marks places of texts which change texts."""
    place = int(path.rpartition(".")[2])
    steps = data.pipeline.steps
    for number, step in enumerate(steps):
        if number > place and step.changes_text:
            other = f"data.pipeline.steps.{number}"
            yield Problem(
                other,
                f"{other} (kind={step.kind}) changes texts in which {path} (kind={steps[place].kind}) "
                f"has marked places; put it before {path}",
            )


class GlobalStepSection(StepSection):
    """The settings of a step that decides over the documents of all sources; the base of all such.

    Attributes:
      COMPARES: what is left of a source depends on the others.
    """

    COMPARES: ClassVar[bool] = True

    protect: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] = Field(
        (), description="sources that lose nothing; others are compared with them all the same"
    )

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield sources that are none."""
        for index, name in enumerate(self.protect):
            if name not in data.sources:
                known = ", ".join(data.sources)
                text = f"{path}.protect={name!r} is not a source; name some of {known}"
                yield Problem(f"{path}.protect.{index}", text)
