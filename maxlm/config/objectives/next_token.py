"""Settings of predicting the next token."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from maxlm.config.objectives.token_loss import TokenLossConfig
from maxlm.config.section import NonNegativeFloat, OnResume


class NextTokenConfig(TokenLossConfig):
    """Every token of a document predicts the one after it."""

    TRAINING_METRICS: ClassVar = {
        "mtp_loss": (
            "nats/token",
            "cross entropy of the further tokens that the modules of `model.mtp` predict, mean over all modules",
        ),
    }
    FURTHER: ClassVar = True

    kind: Literal["next_token"] = "next_token"
    mtp_weight: Annotated[NonNegativeFloat, OnResume.FREE] = Field(
        0.3,
        description="weight of the mean cross entropy of model.mtp's modules, where there are some",
    )
