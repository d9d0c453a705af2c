"""Settings of the cross entropy of tokens."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from maxlm.config.section import Metrics, NonNegativeFloat, OnResume, PositiveInt, Section


class TokenLossConfig(Section):
    """Cross entropy, and what is added to it; the base of every objective that predicts tokens.

    Attributes:
      METRICS: what the objective reports of a batch.
    """

    METRICS: ClassVar[Metrics] = {
        "loss": ("nats/token", "cross entropy, mean over target tokens"),
        "perplexity": ("", "exp(loss)"),
        "bits_per_byte": ("bits/byte", "the loss per byte of text, comparable between tokenizers"),
    }

    z_loss: NonNegativeFloat = Field(0.0, description="weight of log(Z)^2 (arXiv:2204.02311)")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    chunk_tokens: Annotated[PositiveInt, OnResume.FREE] = Field(
        1024, description="tokens whose logits exist at once, per device"
    )
