"""Predict a run's loss from a fitted ladder, at its end and on the way."""

from __future__ import annotations

import numpy as np

from maxlm.config.schema import RunConfig
from maxlm.metrics.prediction import Expected, Prediction
from maxlm.models.cost import parameter_parts
from maxlm.scaling.ladder.fitted import FittedLadder
from maxlm.scaling.ladder.results import Result

GRID = np.linspace(0.05, 1.0, 20)
"""Fractions of a run's steps at which the way to its final loss is told."""


def foretell(
    fitted: FittedLadder, results: tuple[Result, ...], config: RunConfig, unique: float | None
) -> Prediction:
    """Predict a run's loss.

    Its end comes from the law. The way there has the shape that the ladder's own runs had: loss
    over final loss, as a function of the fraction of steps done.

    Args:
      fitted: the ladder's law.
      results: its finished rungs.
      config: the run; it must have the rungs' schedule for the way to hold.
      unique: tokens that its data have (`results.unique_tokens`); None if none is read twice, or
        they are not prepared.
    """
    parts = parameter_parts(config.model)
    parameters = sum(parts.values())
    embedding = parts["embedding"] + parts["head"]
    counted = parameters - (embedding if fitted.counts == "non_embedding" else 0)
    tokens = config.train.num_steps * config.tokens_per_step
    final = fitted.loss_at(counted, tokens, min(tokens, unique or tokens))
    return Prediction(fitted.loss, parameters, tokens, Expected(*final), _shape(results))


def _shape(results: tuple[Result, ...]) -> tuple[tuple[float, float, float, float], ...]:
    ratios = np.array([_ratios(result) for result in results])
    rows: list[tuple[float, float, float, float]] = []
    for fraction, column in zip(GRID, ratios.T, strict=True):
        known = column[np.isfinite(column)]
        if len(known):
            middle = float(np.median(known))
            rows.append((float(fraction), middle, float(known.min()), float(known.max())))
    # At the end every ratio is 1, also of a ladder whose rungs are evaluated only there.
    return (*[row for row in rows if row[0] < 1], (1.0, 1.0, 1.0, 1.0))


def _ratios(result: Result) -> np.ndarray:
    """Return loss / final loss of a rung on the grid; nan before its first evaluation."""
    steps, losses = (np.array(one, np.float64) for one in zip(*result.curve, strict=True))
    fractions = steps / result.rung.config.train.num_steps
    ratios = np.exp(np.interp(GRID, fractions, np.log(losses / losses[-1])))
    return np.where(fractions[0] - 1e-9 <= GRID, ratios, np.nan)
