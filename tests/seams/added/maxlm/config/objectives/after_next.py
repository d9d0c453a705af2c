"""Settings of predicting the token after the next one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.objectives.token_loss import TokenLossConfig
from maxlm.config.section import Count, PositiveInt

if TYPE_CHECKING:
    from maxlm.config.schema import RunConfig


class AfterNextConfig(TokenLossConfig):
    """Every token predicts the one after the next, from the last `window` tokens."""

    METRICS: ClassVar = {
        **TokenLossConfig.METRICS,
        "target_share": ("fraction", "tokens that predict one, of all"),
    }

    kind: Literal["after_next"] = "after_next"
    window: PositiveInt = Field(description="tokens that a token sees")
    ignored: Count = Field(0, description="first tokens of a document that predict nothing")

    def problems(self, run: RunConfig) -> Iterator[Problem]:
        """Yield a start of documents that leaves nothing to be predicted."""
        if self.ignored >= run.data.sequence_length:
            text = f"objective.ignored={self.ignored} leaves none of data.sequence_length={run.data.sequence_length}"
            yield Problem("objective.ignored", f"{text} tokens; use objective.ignored=0")
