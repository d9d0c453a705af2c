"""What a model is trained for: a file for each objective, called like those with its settings and
its examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from maxlm.config.objectives import Objective as ObjectiveConfig
from maxlm.kernels.mask import Mask
from maxlm.ops.cross_entropy import LogitRule
from maxlm.train.objectives.next_token import NextToken


class Objective(Protocol):
    """From last hidden states to a number to make smaller; the same for a plain, a pipelined and a
    validation pass.
    """

    def mask(self, fields: Mapping[str, jax.Array], places_BT: jax.Array) -> Mask:
        """Return which tokens each token may look at.

        Args:
          fields: of this device's tokens, (B, T) each.
          places_BT: int32, where they stand in their rows.
        """

    def weight(self, fields: Mapping[str, jax.Array]) -> jax.Array:
        """Return what these tokens count; the step divides its loss by the sum over all devices."""

    def loss(
        self, hidden_TD: jax.Array, output_DV: jax.Array, fields: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return a sum over tokens, to be differentiated, and other sums, for metrics.

        Args:
          hidden_TD: last hidden states, normalised, the same on every `tensor` device.
          output_DV: this device's columns of the output projection.
          fields: of the same tokens, (T,) each.
        """

    def metrics(self, weight: float, sums: Mapping[str, float]) -> dict[str, float]:
        """Return metrics by their names behind `train/` and `val/<source>/`, from sums over all
        devices and batches.
        """


class FurtherObjective(Objective, Protocol):
    """One whose section says `FURTHER`: it has targets for the modules of `model.mtp` as well."""

    def further_loss(
        self,
        hidden_TD: jax.Array,
        output_DV: jax.Array,
        fields: Mapping[str, jax.Array],
        *,
        depth: int,
        depths: int,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return a depth's part of what is differentiated, and other sums; see `Objective.loss`.

        Args:
          hidden_TD: of the module of that depth.
          output_DV: this device's columns of the output projection.
          fields: of the same tokens, (T,) each.
          depth: from 1.
          depths: how many there are.
        """


OBJECTIVES: dict[str, Any] = {
    "next_token": NextToken,
}


def build_objective(
    config: ObjectiveConfig, *, logit_rule: LogitRule, num_ids: int | None = None
) -> Objective:
    """Build the run's objective.

    Args:
      config: its section.
      logit_rule: how the model's logits come from products with its output projection.
      num_ids: ids that the tokenizer has, where the model's vocabulary is larger; None: all are
        ids.
    """
    built: Objective = OBJECTIVES[config.kind](config, logit_rule=logit_rule, num_ids=num_ids)
    return built
