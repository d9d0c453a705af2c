"""Predict the token after the next one of each document."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from maxlm.config.objectives.after_next import AfterNextConfig
from maxlm.kernels.mask import Mask, causal
from maxlm.ops.cross_entropy import LogitRule
from maxlm.train.objectives.token_loss import Fields, TokenLoss


class AfterNext(TokenLoss):
    """Every token sees the last ones of its document, and predicts the one after the next."""

    def __init__(
        self, config: AfterNextConfig, *, logit_rule: LogitRule, num_ids: int | None = None
    ):
        super().__init__(config, logit_rule=logit_rule, num_ids=num_ids)
        self._window = config.window

    def mask(self, fields: Fields, places_BT: jax.Array) -> Mask:
        """Hide what comes later, what is `window` or more tokens back, and other documents."""
        return causal(fields["segment_ids"], places_BT, self._window)

    def loss(
        self, hidden_TD: jax.Array, output_DV: jax.Array, fields: Fields
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sum cross entropy, and count all tokens besides."""
        objective, sums = super().loss(hidden_TD, output_DV, fields)
        return objective, {**sums, "tokens": jnp.ones_like(fields["weights"]).sum()}

    def metrics(self, weight: float, sums: Mapping[str, float]) -> dict[str, float]:
        """Return what cross entropy says, and the share of tokens that predict one."""
        return {**super().metrics(weight, sums), "target_share": weight / sums["tokens"]}
