"""What the modules of `model.mtp` add to the objective, in a plain pass and in a pipelined one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.data.examples.further import further
from maxlm.jax_versions import vary_over
from maxlm.layers.stack import StackReports
from maxlm.models.decoder import Decoder
from maxlm.sharding.mesh import AXES
from maxlm.sharding.pipeline import on_some_stages
from maxlm.train.loss.execution import Execution
from maxlm.train.objectives import FurtherObjective

Fields = Mapping[str, jax.Array]


def next_tokens(decoder: Decoder, fields: Fields) -> list[jax.Array]:
    """Return what each module embeds: the tokens 1, 2, ... places behind the model's."""
    return [fields[further("targets", depth)] for depth in range(len(decoder.mtp))]


def further_loss(
    decoder: Decoder, hidden: Sequence[jax.Array], fields: Fields, execution: Execution
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """From what each depth's module makes of tokens, (T, D), and the fields of the same tokens to
    this device's part of what is differentiated, before it is scaled, and other sums.
    """
    learned, losses = cast(FurtherObjective, execution.objective), []
    for depth, hidden_TD in enumerate(hidden, start=1):
        about = {"depth": depth, "depths": len(hidden)}
        losses.append(learned.further_loss(hidden_TD, decoder.output_DV(), fields, **about))
    objective, metrics = jax.tree.map(lambda *of_depths: sum(of_depths), *losses)
    return objective, metrics


def further_on_last_stage(
    outer: Decoder, y_BTD: jax.Array, fields: Fields, execution: Execution
) -> tuple[list[jax.Array], StackReports]:
    """Run the modules behind a pipeline's last stage; the other stages return zeros (see
    `on_some_stages`).

    Args:
      outer: the decoder without the stack, the modules' shards as they are kept.
      y_BTD: what the last virtual stage's layers hand on.
      fields: of a microbatch, (B, T) each.
      execution: how the loss is computed.

    Returns:
      normalised hidden states of each depth, (B, T / tensor, D), and what the modules' layers
      report.
    """
    tokens_DBT = next_tokens(outer, fields)
    info = execution.sequence_info(fields)

    def run(outer: Decoder, y_BTD: jax.Array) -> tuple[list[jax.Array], StackReports]:
        if execution.gather == "microbatch":
            outer = outer.with_modules(execution.whole(outer.mtp))
        results = outer.further(outer.norm(y_BTD), tokens_DBT, info, execution.blocks)
        return jax.tree.map(lambda x: vary_over(x, AXES), results)  # type: ignore[no-any-return]

    def skip(outer: Decoder, y_BTD: jax.Array) -> tuple[list[jax.Array], StackReports]:
        shapes = jax.eval_shape(run, outer, y_BTD)
        return jax.tree.map(lambda s: vary_over(jnp.zeros(s.shape, s.dtype), AXES), shapes)  # type: ignore[no-any-return]

    last = lax.axis_index("stage") == lax.axis_size("stage") - 1
    with jax.named_scope("mtp"):
        return on_some_stages(last, run, skip, outer, y_BTD, permutes=info.permutes)
