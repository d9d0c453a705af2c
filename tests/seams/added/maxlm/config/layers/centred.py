"""Settings of feed-forward layers with centred inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from maxlm.config.divisible import divisible
from maxlm.config.errors import Problem
from maxlm.config.section import Fraction, LayerSection, NonNegativeFloat, PositiveInt

if TYPE_CHECKING:
    from maxlm.config.schema import RunConfig


class CentredConfig(LayerSection):
    """A plain feed-forward layer whose inputs are counted from a centre that follows their mean."""

    ACTIVATIONS: ClassVar = {"centred_hidden": "hidden units before the nonlinearity"}
    METRICS: ClassVar = {
        "centred/<layer>/distance": ("", "squared distance from the centre, mean over tokens")
    }

    kind: Literal["centred"] = "centred"
    hidden_dim: PositiveInt = Field(description="hidden units")
    rate: Fraction = Field(
        0.1, description="share of the way to the mean that the centre goes after a step"
    )
    penalty: NonNegativeFloat = Field(
        0.0, description="weight of the squared distance from the centre"
    )

    def problems(self, path: str, run: RunConfig) -> Iterator[Problem]:
        """Yield hidden units that do not divide by the mesh."""
        yield from divisible(
            f"{path}.hidden_dim", self.hidden_dim, {"mesh.tensor": run.mesh.tensor}
        )
