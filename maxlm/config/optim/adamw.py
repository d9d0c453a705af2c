"""Settings of AdamW."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from maxlm.config.optim.optimizer import OptimizerSection
from maxlm.config.section import PositiveFloat


class AdamwConfig(OptimizerSection):
    """AdamW with decoupled weight decay (arXiv:1711.05101) after clipping by global norm."""

    kind: Literal["adamw"] = "adamw"
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    epsilon: PositiveFloat = 1e-8
