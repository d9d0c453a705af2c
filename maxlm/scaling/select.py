"""Which law to believe: the one that predicted the larger budgets best from the smaller ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from maxlm.scaling.fit import Fit, Search, fit_law
from maxlm.scaling.laws import Law, Runs


class HeldOut(NamedTuple):
    """A prediction of runs that a fit has not seen.

    Attributes:
      law: name of the form.
      fitted: how many runs the fit has seen.
      flops: the budget that was predicted.
      errors: predicted / measured - 1 of each run of that budget.
    """

    law: str
    fitted: int
    flops: float
    errors: np.ndarray

    @property
    def worst(self) -> float:
        """The largest error, without its sign."""
        return float(np.abs(self.errors).max())


class Choice(NamedTuple):
    """A law, and what spoke for it.

    Attributes:
      fit: to all runs.
      rollouts: of each law by name, the predictions of budget k + 1 from budgets up to k.
      scores: of each law, the root mean square of its errors; inf where it has none.
    """

    fit: Fit
    rollouts: dict[str, list[HeldOut]]
    scores: dict[str, float]


def rollouts(
    law: Law,
    runs: Runs,
    budgets: np.ndarray,
    search: Search = Search(),  # noqa: B008 (immutable)
) -> Iterator[HeldOut]:
    """Predict each budget from all smaller ones, where these are enough to fit the law.

    Args:
      law: the form.
      runs: what is known.
      budgets: the budget of each run; equal numbers are one budget.
      search: how to fit.
    """
    for budget in np.unique(budgets):
        smaller, there = budgets < budget, budgets == budget
        enough = smaller.sum() > len(law.names) and len(np.unique(budgets[smaller])) > 1
        if not enough:
            continue
        fit = fit_law(law, runs.only(smaller), search)
        target = runs.only(there)
        predicted = fit.predict(target.parameters, target.tokens, target.unique_tokens)
        yield HeldOut(law.name, int(smaller.sum()), float(budget), predicted / target.losses - 1)


def choose_law(
    laws: Iterable[Law],
    runs: Runs,
    budgets: np.ndarray,
    search: Search = Search(),  # noqa: B008 (immutable)
) -> Choice:
    """Fit the law whose rollouts have the smallest errors; the first of `laws` where none has any.

    Raises:
      ValueError: there are too few runs for every law.
    """
    listed = [law for law in laws if runs.number >= len(law.names)]
    if not listed:
        raise ValueError(f"{runs.number} runs are too few for any law; add runs")
    found = {law.name: list(rollouts(law, runs, budgets, search)) for law in listed}
    scores = {name: _score(own) for name, own in found.items()}
    best = min(listed, key=lambda law: scores[law.name])
    return Choice(fit_law(best, runs, search), found, scores)


def _score(own: list[HeldOut]) -> float:
    if not own:
        return float("inf")
    return float(np.sqrt(np.mean(np.concatenate([one.errors for one in own]) ** 2)))
