"""Settings that every step of the text pipeline has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from maxlm.config.errors import Problem
from maxlm.config.section import Section

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig


class StepSection(Section):
    """The settings of a kind of step; the base of all.

    Attributes:
      kind: the name of the kind, by which the step is found.
    """

    kind: str

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield what is wrong between its settings, and with those of the run's data.

        Args:
          path: where the section stands, such as data.pipeline.steps.0.
          data: the run's data: its sources, its tokenizer.
        """
        del path, data
        yield from ()
