"""The model size and the number of tokens that make the most of a compute budget."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from maxlm.scaling.fit import Fit
from maxlm.scaling.runs import Runs

SIZES = 1e3, 1e15
"""Between which the best size is looked for."""
REFINEMENTS = 2
"""Grids, each between the neighbours of the lowest point of the one before."""


class Cost(NamedTuple):
    """FLOPs that training needs per token, factor x N^power.

    6 N for matrices alone; attention and the projection to the vocabulary weigh more in small
    models, so runs that know their FLOPs have a power below 1.
    """

    factor: float = 6.0
    power: float = 1.0

    @classmethod
    def of(cls, runs: Runs, flops: np.ndarray) -> Cost:
        """Fit the power law to runs whose FLOPs are known."""
        sizes = np.log(runs.parameters)
        per_token = np.log(np.asarray(flops, np.float64) / runs.tokens)
        if np.ptp(sizes) == 0:
            return cls(float(np.exp(np.mean(per_token - sizes))), 1.0)
        power, factor = np.polyfit(sizes, per_token, 1)
        return cls(float(np.exp(factor)), float(power))

    def flops(self, parameters: float, tokens: float) -> float:
        """Return what a run spends."""
        return float(self.factor * parameters**self.power * tokens)

    def tokens(self, flops: float, parameters: np.ndarray | float) -> np.ndarray:
        """Return the tokens that the budget pays for, at each size."""
        return np.asarray(flops / (self.factor * np.power(parameters, self.power)))


class Optimum(NamedTuple):
    """The best use of a budget: N, D, and the loss there."""

    parameters: float
    tokens: float
    loss: float

    @property
    def tokens_per_parameter(self) -> float:
        """D / N; about 20 by Hoffmann et al. (arXiv:2203.15556)."""
        return self.tokens / self.parameters


def best_size(fit: Fit, flops: float, cost: Cost = Cost()) -> Optimum:  # noqa: B008 (immutable)
    """Return where the loss is least along all sizes that spend the budget.

    Raises:
      ValueError: the law has its least loss at an end of `SIZES`, so it names
        no best size.
    """

    grid = np.linspace(np.log(SIZES[0]), np.log(SIZES[1]), 241)
    losses, lowest = _lowest(fit, flops, cost, grid)
    for _ in range(REFINEMENTS):
        if lowest in (0, len(grid) - 1):
            raise ValueError(
                f"the {fit.law.name} law falls all the way to N={np.exp(grid[lowest]):.0e} at {flops:g} FLOPs: "
                "it names no best size; fit it to budgets with sizes on both sides of their best"
            )
        grid = np.linspace(grid[lowest - 1], grid[lowest + 1], 41)
        losses, lowest = _lowest(fit, flops, cost, grid)
    # The lowest point of the parabola through the three last ones.
    lowest = min(max(lowest, 1), len(grid) - 2)
    left, middle, right = losses[lowest - 1 : lowest + 2]
    bend = left - 2 * middle + right
    move = 0.5 * (left - right) / bend if bend > 0 else 0.0
    size = float(np.exp(grid[lowest] + move * (grid[1] - grid[0])))
    tokens = float(cost.tokens(flops, size))
    return Optimum(size, tokens, float(fit.predict(size, tokens)))


def _lowest(fit: Fit, flops: float, cost: Cost, grid: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the losses at sizes whose logarithms are given, and where they are least."""
    sizes = np.exp(grid)
    losses = fit.predict(sizes, cost.tokens(flops, sizes))
    return losses, int(np.argmin(losses))


def optimum_exponents(fit: Fit) -> tuple[float, float]:
    """Return the powers of C with which the best N and D of a surface grow (arXiv:2203.15556,
    eq. 4), b / (a + b) and a / (a + b).
    """
    raw = fit.raw
    total = raw["a"] + raw["b"]
    return raw["b"] / total, raw["a"] / total
