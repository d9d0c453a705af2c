"""Settings that every objective has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from maxlm.config.errors import Problem
from maxlm.config.section import Metrics, Section

if TYPE_CHECKING:
    from maxlm.config.schema import RunConfig


class ObjectiveSection(Section):
    """The settings of a kind of objective; the base of all.

    Attributes:
      kind: the name of the kind, by which the objective and its examples are found.
      METRICS: what the objective reports of a batch, by its name behind `train/` and
      `val/<source>/`: the unit and the
        meaning of each.
      TRAINING_METRICS: likewise, what it reports by its name behind `train/` alone.
      FURTHER: whether it can have the modules of `model.mtp` predict further tokens.
    """

    METRICS: ClassVar[Metrics] = {}
    TRAINING_METRICS: ClassVar[Metrics] = {}
    FURTHER: ClassVar[bool] = False

    kind: str

    def problems(self, run: RunConfig) -> Iterator[Problem]:
        """Yield what is wrong between its settings, and with the model's, the data's and the
        mesh's.
        """
        del run
        yield from ()
