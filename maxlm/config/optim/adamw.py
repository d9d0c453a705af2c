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

    def width_rate(self, role: str, fan_in: float, fan_out: float) -> float:
        """Divide by the fan-in (arXiv:2203.03466, table 8, Adam): every entry of an update is about
        1, so a product that sums over more of them, all aligned with what it meets, grows with it.

        Of the output projection the logits' factor does so.
        """
        del fan_out
        return 1 / fan_in if role in ("matrix", "router") else 1.0
