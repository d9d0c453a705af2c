"""Fit a law to runs: Huber's loss on the logarithm of the loss, many starts, bootstrap intervals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maxlm.scaling.laws import Law
from maxlm.scaling.runs import Runs, Units

DELTA = 1e-3
"""Where Huber's loss turns from squares to absolute values, in log loss (arXiv:2203.15556)."""
STALLED = 1e-8
"""A search whose steps lower its loss by less than this share is at the end."""
MOST_STEPS = 400
"""A search that has not settled by then is taken as it is: steps are only ever taken downhill."""


class Fit(NamedTuple):
    """A law with its numbers.

    Attributes:
      law: the form.
      numbers: in the order of the law's names, for N and D in `units`.
      units: what N and D are divided by.
      residuals: log(predicted) - log(measured) of each run.
    """

    law: Law
    numbers: np.ndarray
    units: Units
    residuals: np.ndarray

    def predict(self, parameters: object, tokens: object, unique: object = None) -> np.ndarray:
        """Return the loss at sizes N and tokens D (and different tokens U, if some repeat)."""
        asked = (parameters, tokens, tokens if unique is None else unique)
        sizes, data, different = np.broadcast_arrays(
            *(np.asarray(one, np.float64) for one in asked)
        )
        runs = Runs.of(sizes.ravel(), data.ravel(), np.ones(sizes.size), different.ravel())
        return self.law.predict(self.numbers, runs.over(self.units)).reshape(sizes.shape)

    @property
    def raw(self) -> dict[str, float]:
        """The law's numbers by name, for N and D as they are."""
        return self.law.raw(self.numbers, self.units)


class Search(NamedTuple):
    """How a law is fitted.

    Attributes:
      num_starts: how many of the law's starts are followed to the end.
      delta: where Huber's loss turns from squares to absolute values, in log loss.
      over_estimate_penalty: factor on errors where the prediction is above the measured loss; more
        than 1 takes high losses for badly tuned runs rather than for the law's.
    """

    num_starts: int = 6
    delta: float = DELTA
    over_estimate_penalty: float = 1.0


def fit_law(law: Law, runs: Runs, search: Search = Search()) -> Fit:  # noqa: B008 (immutable)
    """Return the law that fits the runs best.

    Raises:
      ValueError: there are fewer runs than the law has numbers.
    """
    if runs.number < len(law.names):
        needed = f"the {law.name} law has {len(law.names)} numbers"
        raise ValueError(f"{needed} and cannot be fitted to {runs.number} runs; add runs")
    units = Units.of(runs)
    within = runs.over(units)
    starts = np.stack(list(itertools.islice(law.starts(within), search.num_starts)))
    found, losses = _solve(law, within, np.ones((len(starts), runs.number)), starts, search)
    numbers = found[losses.argmin()]
    residuals = np.log(law.predict(numbers, within) / runs.losses)
    return Fit(law, numbers, units, residuals)


def bootstrap(
    fit: Fit,
    runs: Runs,
    *,
    count: int = 200,
    seed: int = 0,
    search: Search = Search(),  # noqa: B008 (immutable)
) -> list[Fit]:
    """Fit the law to `count` weightings of the runs, each searched from the fit's own numbers.

    Weights are drawn from a flat Dirichlet distribution (Rubin 1981): unlike draws with
    replacement, no weighting leaves a size or a budget out, and with it the law undetermined.
    """
    within = runs.over(fit.units)
    rng = np.random.default_rng(seed)
    # Residuals of p numbers fitted to n runs are too small by sqrt(1 - p / n). They are not stretched
    # for it: few runs are weighted so unevenly that the fits spread by about as much more.
    weights = rng.dirichlet(np.ones(runs.number), count) * runs.number
    found, _ = _solve(fit.law, within, weights, np.tile(fit.numbers, (count, 1)), search)
    residuals = np.log(fit.law.predict(found, within) / runs.losses)
    return [
        Fit(fit.law, numbers, fit.units, own) for numbers, own in zip(found, residuals, strict=True)
    ]


def interval(values: Sequence[float] | np.ndarray, coverage: float = 0.9) -> tuple[float, float]:
    """Return the quantiles between which the middle `coverage` of bootstrap values lies."""
    tail = (1 - coverage) / 2
    low, high = np.quantile(np.asarray(values, np.float64), [tail, 1 - tail])
    return float(low), float(high)


class _Rows(NamedTuple):
    """K searches for the P numbers of a law, by R runs each.

    Attributes:
      numbers_KP: where they are.
      errors_KR: there.
      losses_K: there.
      damping_K: of their next steps.
    """

    numbers_KP: np.ndarray
    errors_KR: np.ndarray
    losses_K: np.ndarray
    damping_K: np.ndarray


def _solve(
    law: Law, runs: Runs, weights_KR: np.ndarray, starts_KP: np.ndarray, search: Search
) -> tuple[np.ndarray, np.ndarray]:
    """Follow K starts at a time to where Huber's loss, with weights on R runs, is least.

    Returns:
      the P numbers of each, (K, P), and their losses, (K,).
    """
    numbers = np.maximum(starts_KP, law.lower)
    errors = _errors(law, numbers, runs, search)
    losses = _huber(errors, weights_KR, search)
    rows = _Rows(numbers, errors, losses, np.full(len(numbers), 1e-3))
    going = np.arange(len(numbers))
    for _ in range(MOST_STEPS):
        before = _Rows(*(one[going] for one in rows))
        after, ended = _step(law, runs, weights_KR[going], before, search)
        for one, values in zip(rows, after, strict=True):
            one[going] = values
        # Most searches take a tenth of the steps of the longest.
        going = going[~ended]
        if not len(going):
            break
    return rows.numbers_KP, rows.losses_K


def _step(
    law: Law, runs: Runs, weights_KR: np.ndarray, rows: _Rows, search: Search
) -> tuple[_Rows, np.ndarray]:
    """Take a step of Levenberg-Marquardt on squares that touch Huber's loss from above (weights
    min(1, delta / |error|), anew at each step), a damping of its own for each of the K. A number at
    its bound stays there while the loss falls beyond it.

    Returns:
      where each of the K is now, and whether it is at the end, (K,).
    """
    numbers, errors_KR, losses, damping = rows
    lower = np.asarray(law.lower)
    jacobian_KRP = _jacobian(law, numbers, runs, search)
    touching_KR = weights_KR / np.maximum(np.abs(errors_KR) / search.delta, 1.0)
    slope_KP = np.einsum("krp,kr->kp", jacobian_KRP, touching_KR * errors_KR)
    jacobian_KRP *= ~((numbers <= lower) & (slope_KP > 0))[:, None]
    slope_KP = np.einsum("krp,kr->kp", jacobian_KRP, touching_KR * errors_KR)
    weighted_KPR = (jacobian_KRP * touching_KR[..., None]).swapaxes(1, 2)
    curved_KPP = weighted_KPR @ jacobian_KRP
    diagonal_KP = np.einsum("kpp->kp", curved_KPP)
    ridge = damping[:, None] * diagonal_KP + 1e-30 + (diagonal_KP == 0)
    step = np.linalg.solve(curved_KPP + ridge[:, None] * np.eye(len(lower)), slope_KP[..., None])
    tried = np.maximum(numbers - step[..., 0], lower)
    tried_errors = _errors(law, tried, runs, search)
    tried_losses = _huber(tried_errors, weights_KR, search)
    better = tried_losses < losses
    # A small gain of a step that damping has shortened says nothing.
    stalled = better & (losses - tried_losses <= STALLED * losses) & (damping < 1)
    moved = np.abs(tried - numbers).max(axis=1)
    damping = np.clip(np.where(better, damping / 4, damping * 6), 1e-12, 1e12)
    after = _Rows(
        np.where(better[:, None], tried, numbers),
        np.where(better[:, None], tried_errors, errors_KR),
        np.where(better, tried_losses, losses),
        damping,
    )
    ended = stalled | (moved < 1e-13) | (damping >= 1e12) | (after.losses_K == 0)
    return after, ended


def _errors(law: Law, numbers_KP: np.ndarray, runs: Runs, search: Search) -> np.ndarray:
    """Return log(predicted) - log(measured), (..., R), over-estimates times their penalty."""
    with np.errstate(all="ignore"):  # a step may lead where powers overflow; it is not taken then
        errors = np.log(law.predict(numbers_KP, runs)) - np.log(runs.losses)
    errors = np.nan_to_num(errors, nan=1e3, posinf=1e3, neginf=-1e3)
    return np.where(errors > 0, search.over_estimate_penalty * errors, errors)


def _jacobian(law: Law, numbers_KP: np.ndarray, runs: Runs, search: Search) -> np.ndarray:
    """Differentiate the errors by central differences, (K, R, P)."""
    width_KP = 1e-6 * np.maximum(np.abs(numbers_KP), 1e-3)
    moved = width_KP[:, None] * np.eye(numbers_KP.shape[1])
    above, below = (
        _errors(law, numbers_KP[:, None] + sign * moved, runs, search) for sign in (1, -1)
    )
    return np.asarray(((above - below) / (2 * width_KP[..., None])).swapaxes(1, 2))


def _huber(errors_KR: np.ndarray, weights_KR: np.ndarray, search: Search) -> np.ndarray:
    scaled = np.abs(errors_KR) / search.delta
    return (weights_KR * np.where(scaled <= 1, scaled**2, 2 * scaled - 1)).sum(axis=1)
