"""Predict the next token of each document."""

from __future__ import annotations

import jax

from maxlm.kernels.mask import Mask, causal
from maxlm.train.objectives.token_loss import Fields, TokenLoss


class NextToken(TokenLoss):
    """Every token sees those before it in its document, and predicts the one after it."""

    def mask(self, fields: Fields, places_BT: jax.Array) -> Mask:
        """Hide what comes later, and other documents."""
        return causal(fields["segment_ids"], places_BT)
