"""Settings of Lion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.optim.optimizer import OptimizerSection


class LionConfig(OptimizerSection):
    """Descent along the signs of a momentum (arXiv:2302.06675), with decoupled weight decay."""

    kind: Literal["lion"] = "lion"
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99

    def problems(self) -> Iterator[Problem]:
        """Yield a momentum that is shorter than what is looked at of it."""
        yield from super().problems()
        if self.beta1 > self.beta2:
            text = f"optimizer.beta1={self.beta1} is more than optimizer.beta2={self.beta2}"
            yield Problem("optimizer.beta1", f"{text}; use 0.9 and 0.99")
