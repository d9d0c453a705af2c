"""Settings of predicting the next token."""

from __future__ import annotations

from typing import Literal

from maxlm.config.objectives.token_loss import TokenLossConfig


class NextTokenConfig(TokenLossConfig):
    """Every token of a document predicts the one after it."""

    kind: Literal["next_token"] = "next_token"
