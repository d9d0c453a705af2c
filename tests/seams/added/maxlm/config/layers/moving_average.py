"""Settings of moving averages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from maxlm.config.divisible import divisible
from maxlm.config.errors import Problem
from maxlm.config.section import LayerSection, PositiveInt

if TYPE_CHECKING:
    from maxlm.config.model import ModelConfig
    from maxlm.config.schema import RunConfig


class MovingAverageConfig(LayerSection):
    """An exponential moving average over each document, a learned decay a channel."""

    ACTIVATIONS: ClassVar = {"averages": "the averages of all channels, fp32"}
    METRICS: ClassVar = {
        "average/<layer>/square": ("", "squared output of the layer, mean over tokens and channels")
    }

    kind: Literal["moving_average"] = "moving_average"
    hidden_dim: PositiveInt = Field(description="channels")
    first_decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.9, description="decays at the start of training"
    )

    def problems(self, path: str, run: RunConfig) -> Iterator[Problem]:
        """Yield channels that do not divide by the mesh."""
        yield from divisible(
            f"{path}.hidden_dim", self.hidden_dim, {"mesh.tensor": run.mesh.tensor}
        )

    def mixing_flops(self, model: ModelConfig, length: int) -> float:
        """Count a multiply-add a channel, once forward and twice backward."""
        del model, length
        return 6 * self.hidden_dim
