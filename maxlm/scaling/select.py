"""Which laws to believe, and how far: each is fitted to small budgets and predicts all larger ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from maxlm.scaling.fit import Fit, Search, bootstrap, fit_law
from maxlm.scaling.laws import Law
from maxlm.scaling.runs import Runs

LEAST_SIZES = 3
"""Model sizes below which no law is determined."""
MOST_LEVELS = 8
"""Budgets that runs are sorted into, at most: where every run has FLOPs of its own, near ones are one."""
BOOTSTRAPS = 40
"""Fits to reweighted runs, of each rollout."""
DRIFTS = np.geomspace(1e-4, 0.1, 31)
"""Standard deviations of a law's error per unit of log FLOPs beyond the runs that it was fitted to,
in log loss: from one that is right to one that is 10 % off for each factor of 2.7."""
_LEAST_VARIANCE = 1e-16


class HeldOut(NamedTuple):
    """A prediction of runs that a fit has not seen.

    Attributes:
      law: name of the form.
      fitted: how many runs the fit has seen.
      largest: the most FLOPs that any of them spent.
      flops: the budget that was predicted.
      errors: predicted / measured - 1 of each run of that budget.
      variance: of the mean of log(predicted / measured), as bootstraps and the scatter of the
        fitted runs about the law explain it.
    """

    law: str
    fitted: int
    largest: float
    flops: float
    errors: np.ndarray
    variance: float

    @property
    def distance(self) -> float:
        """How far beyond the fitted runs it lies, in log FLOPs."""
        return float(np.log(self.flops / self.largest))

    @property
    def mean_log_error(self) -> float:
        """The mean of log(predicted / measured)."""
        return float(np.log1p(self.errors).mean())


class Judged(NamedTuple):
    """A law, fitted to all runs, and what speaks for it and against it.

    Attributes:
      fit: to all runs.
      bootstraps: its fits to reweighted runs.
      noise: standard deviation of log(predicted / measured) of the runs.
      rollouts: predictions of larger budgets from the smaller ones.
      drifts: how likely each of `DRIFTS` is, after the rollouts.
      weight: the probability that the law has among those that were judged together.
    """

    fit: Fit
    bootstraps: tuple[Fit, ...]
    noise: float
    rollouts: tuple[HeldOut, ...]
    drifts: np.ndarray
    weight: float

    @property
    def score(self) -> float:
        """The root mean square of the rollouts' errors; inf without any."""
        if not self.rollouts:
            return float("inf")
        return float(np.sqrt(np.mean(np.concatenate([one.errors for one in self.rollouts]) ** 2)))


def judge_laws(
    laws: Iterable[Law],
    runs: Runs,
    flops: np.ndarray,
    *,
    count: int = 200,
    search: Search = Search(),  # noqa: B008 (immutable)
) -> list[Judged]:
    """Fit every law and weigh it by its rollouts, the heaviest first.

    Weights are posterior probabilities, equal before the rollouts, from those rollouts that all
    laws have: a law with many numbers can be fitted to fewer of the smaller budgets. One that has
    none beside others that have some can not be judged, and weighs nothing.

    Args:
      laws: the forms.
      runs: what is known.
      flops: what each run has spent.
      count: bootstraps of each law.
      search: how to fit.

    Raises:
      ValueError: there are too few runs for every law.
    """
    listed = [law for law in laws if runs.number >= len(law.names)]
    if not listed:
        raise ValueError(f"{runs.number} runs are too few for any law; add runs")
    tables = [tuple(rollouts(law, runs, flops, search)) for law in listed]
    cuts = [{one.largest for one in own} for own in tables if own]
    common = set.intersection(*cuts) if cuts else set()
    evidence = np.array(
        [
            np.logaddexp.reduce(log_likelihoods([one for one in own if one.largest in common]))
            if own or not cuts
            else -np.inf
            for own in tables
        ]
    )
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    judged = []
    for law, own, weight in zip(listed, tables, weights, strict=True):
        fit = fit_law(law, runs, search)
        likelihoods = log_likelihoods(own)
        drifts = np.exp(likelihoods - np.logaddexp.reduce(likelihoods))
        fits = tuple(bootstrap(fit, runs, count=count, search=search))
        judged.append(Judged(fit, fits, scatter(fit), own, drifts, float(weight)))
    return sorted(judged, key=lambda one: -one.weight)


def log_likelihoods(held_out: Sequence[HeldOut]) -> np.ndarray:
    """Return log p(errors of rollouts | drift) for each of `DRIFTS`.

    The mean log error at distance d is normal, with variance v + (drift x d)^2: v is what
    bootstraps and scatter explain. Errors of one fit at several distances are hardly independent of
    each other, so that they count as one together: the mean of their logarithms.
    """
    total = np.zeros(len(DRIFTS))
    for largest in {one.largest for one in held_out}:
        own = [one for one in held_out if one.largest == largest]
        for one in own:
            variances = max(one.variance, _LEAST_VARIANCE) + (DRIFTS * one.distance) ** 2
            squares = one.mean_log_error**2 / variances
            total -= 0.5 * (squares + np.log(2 * np.pi * variances)) / len(own)
    return total


def rollouts(
    law: Law,
    runs: Runs,
    flops: np.ndarray,
    search: Search = Search(),  # noqa: B008 (immutable)
) -> Iterator[HeldOut]:
    """Fit the runs up to each budget, where these are enough, and predict all larger budgets.

    Args:
      law: the form.
      runs: what is known.
      flops: what each run has spent.
      search: how to fit.
    """
    levels = budget_levels(flops)
    for cut in np.unique(levels)[:-1]:
        smaller = levels <= cut
        known = runs.only(smaller)
        enough = known.number > len(law.names) and len(set(levels[smaller])) > 1
        if not enough or len(set(known.parameters)) < LEAST_SIZES:
            continue
        fit = fit_law(law, known, search)
        others = bootstrap(fit, known, count=BOOTSTRAPS, search=search)
        for level in np.unique(levels[~smaller]):
            there = levels == level
            target = runs.only(there)
            asked = target.parameters, target.tokens, target.unique_tokens
            spread = np.std([np.log(one.predict(*asked)).mean() for one in others])
            yield HeldOut(
                law.name,
                known.number,
                float(flops[smaller].max()),
                float(np.exp(np.log(flops[there]).mean())),
                fit.predict(*asked) / target.losses - 1,
                float(spread**2 + scatter(fit) ** 2 / target.number),
            )


def scatter(fit: Fit) -> float:
    """Return the standard deviation of log(predicted / measured) of the fitted runs."""
    spare = max(len(fit.residuals) - len(fit.law.names), 1)
    return float(np.sqrt((fit.residuals**2).sum() / spare))


def budget_levels(flops: np.ndarray) -> np.ndarray:
    """Number the budgets: runs whose log FLOPs differ by less than 0.1, or an eighth of the range,
    have one.
    """
    logs = np.log(flops)
    width = max(0.1, float(np.ptp(logs)) / MOST_LEVELS)
    levels = np.zeros(len(logs), int)
    number, start = -1, -np.inf
    for place in np.argsort(logs, kind="stable"):
        if logs[place] >= start + width:
            number, start = number + 1, logs[place]
        levels[place] = number
    return levels
