"""Predict the next token of each document."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maxlm.kernels.mask import Mask
from maxlm.train.objectives.token_loss import Fields, TokenLoss


class NextToken(TokenLoss):
    """Every token sees those before it in its document, and predicts the one after it."""

    def mask(self, fields: Fields, places_BT: jax.Array) -> Mask:
        """Hide what comes later, and other documents."""
        del places_BT
        start = jnp.int32(0)
        return Mask(fields["segment_ids"], fields["segment_ids"], start, start)
