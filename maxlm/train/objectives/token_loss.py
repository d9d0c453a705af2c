"""Cross entropy of tokens: what objectives that predict tokens share."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from maxlm.config.objectives.token_loss import TokenLossConfig
from maxlm.ops.cross_entropy import LogitRule, LossOptions, cross_entropy

Fields = Mapping[str, jax.Array]


class TokenLoss:
    """A mean over target tokens, each with a weight."""

    def __init__(
        self, config: TokenLossConfig, *, logit_rule: LogitRule, num_ids: int | None = None
    ):
        self._options = LossOptions(
            z_loss=config.z_loss,
            label_smoothing=config.label_smoothing,
            chunk_tokens=config.chunk_tokens,
            logit_rule=logit_rule,
            num_ids=num_ids,
        )

    def weight(self, fields: Fields) -> jax.Array:
        """Count the targets."""
        return fields["weights"].sum()

    def loss(
        self, hidden_TD: jax.Array, output_DV: jax.Array, fields: Fields
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sum cross entropy with z-loss and smoothing, and without both: `nats`; and the targets'
        bytes of text.
        """
        objective, nats = self._cross_entropy(hidden_TD, output_DV, fields)
        target_bytes = jnp.where(fields["weights"] > 0, fields["target_bytes"], 0).sum()
        return objective, {"nats": nats, "target_bytes": target_bytes}

    def _cross_entropy(
        self, hidden_TD: jax.Array, output_DV: jax.Array, fields: Fields
    ) -> tuple[jax.Array, jax.Array]:
        targets_T, weights_T = fields["targets"], fields["weights"]
        return cross_entropy(hidden_TD, output_DV, targets_T, weights_T, self._options)

    def metrics(self, weight: float, sums: Mapping[str, float]) -> dict[str, float]:
        """Return loss (nats per token), perplexity and bits per byte."""
        loss = sums["nats"] / max(weight, 1.0)
        return {
            "loss": loss,
            # Finite for any loss that a float can hold; a diverged run must still be able to
            # report.
            "perplexity": math.exp(min(loss, 700.0)) if math.isfinite(loss) else loss,
            "bits_per_byte": sums["nats"] / math.log(2) / max(sums["target_bytes"], 1),
        }
