"""Predict the next token of each document, and with the modules of `model.mtp` further ones."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from maxlm.config.objectives.next_token import NextTokenConfig
from maxlm.data.examples.further import further
from maxlm.kernels.mask import Mask, causal
from maxlm.ops.cross_entropy import LogitRule
from maxlm.train.objectives.token_loss import Fields, TokenLoss


class NextToken(TokenLoss):
    """Every token sees those before it in its document, and predicts the one after it."""

    def __init__(
        self, config: NextTokenConfig, *, logit_rule: LogitRule, num_ids: int | None = None
    ):
        super().__init__(config, logit_rule=logit_rule, num_ids=num_ids)
        self._mtp_weight = config.mtp_weight

    def mask(self, fields: Fields, places_BT: jax.Array) -> Mask:
        """Hide what comes later, and other documents."""
        return causal(fields["segment_ids"], places_BT)

    def further_loss(
        self, hidden_TD: jax.Array, output_DV: jax.Array, fields: Fields, *, depth: int, depths: int
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sum a depth's cross entropy as that of the next token, times weight / depths.

        arXiv:2412.19437, eq. 24 and 25: the sums of all depths are divided by the number of next
        tokens, so that each predicted token counts the same; those that a document's end leaves
        without a target are few.
        """
        own = {name: fields[further(name, depth)] for name in ("targets", "weights")}
        objective, nats = self._cross_entropy(hidden_TD, output_DV, own)
        sums = {"mtp_nats": nats, "mtp_targets": own["weights"].sum()}
        return self._mtp_weight / depths * objective, sums

    def metrics(self, weight: float, sums: Mapping[str, float]) -> dict[str, float]:
        """Return what the next token's cross entropy says, and that of all modules if there are
        some.
        """
        metrics = super().metrics(weight, sums)
        if "mtp_nats" in sums:
            metrics["mtp_loss"] = sums["mtp_nats"] / max(sums["mtp_targets"], 1.0)
        return metrics
