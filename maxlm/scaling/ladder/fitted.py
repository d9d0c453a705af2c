"""A fitted ladder: its law with intervals, how well it foretold, what it says of any budget; as a
file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maxlm.config.errors import UserError
from maxlm.config.ladder import LadderConfig
from maxlm.files import read_regular
from maxlm.scaling.fit import Fit, Search, bootstrap, interval
from maxlm.scaling.ladder.results import Gathered
from maxlm.scaling.laws import LAWS, Units
from maxlm.scaling.optimum import Cost, Optimum, best_size
from maxlm.scaling.select import HeldOut, choose_law, rollouts

COVERAGE = 0.9
VERSION = 1


class Range(NamedTuple):
    """A number and the interval that holds the middle 90 % of its bootstrap values."""

    value: float
    low: float
    high: float


class FittedLadder(NamedTuple):
    """What a ladder says.

    Attributes:
      fit: the law that is believed.
      bootstraps: its fits to reweighted runs.
      noise: standard deviation of log(predicted / measured) of the runs, as one run's share of an
        interval.
      held_out: predictions of each budget from the smaller ones, by the chosen law.
      scores: root mean square of those errors for each law that was tried.
      cost: FLOPs per token as a function of N.
      loss: the metric.
      counts: what N counts, as `fit.count`.
      runs: how many it is fitted to.
      largest_flops: the most that any of them spent.
    """

    fit: Fit
    bootstraps: tuple[Fit, ...]
    noise: float
    held_out: tuple[HeldOut, ...]
    scores: dict[str, float]
    cost: Cost
    loss: str
    counts: str
    runs: int
    largest_flops: float

    def loss_at(self, parameters: float, tokens: float) -> Range:
        """Predict the loss of one run, with the interval that holds it with 90 % confidence.

        The interval has two parts: how uncertain the law is, from the bootstraps, and how far runs
        lie from their law.
        """
        rng = np.random.default_rng(0)
        values = np.array([float(one.predict(parameters, tokens)) for one in self.bootstraps])
        scattered = values * np.exp(self.noise * rng.standard_normal((16, len(values))))
        low, high = interval(scattered.ravel(), COVERAGE)
        return Range(float(self.fit.predict(parameters, tokens)), low, high)

    def best_at(self, flops: float) -> dict[str, Range]:
        """Return N, D, D / N and loss of the best use of a budget, each with its interval.

        Raises:
          UserError: the law names no best size there.
        """
        try:
            central = best_size(self.fit, flops, self.cost)
        except ValueError as error:
            raise UserError(str(error)) from None
        others = list[Optimum]()
        for one in self.bootstraps:
            try:
                others.append(best_size(one, flops, self.cost))
            except ValueError:
                continue  # one reweighting without an optimum is part of the spread it leaves
        if not others:
            raise UserError(
                f"the {self.fit.law.name} law names a best size at {flops:g} FLOPs, and none of its fits to reweighted "
                "runs does; add runs"
            )
        names = ("parameters", "tokens", "tokens_per_parameter", "loss")
        return {
            name: Range(
                getattr(central, name), *interval([getattr(one, name) for one in others], COVERAGE)
            )
            for name in names
        }

    def numbers(self) -> dict[str, Range]:
        """Return the law's numbers with their intervals."""
        raws = [one.raw for one in self.bootstraps]
        return {
            name: Range(value, *interval([raw[name] for raw in raws], COVERAGE))
            for name, value in self.fit.raw.items()
        }


def fit_ladder(ladder: LadderConfig, gathered: Gathered, loss: str) -> FittedLadder:
    """Choose a law by rollouts, fit it to all runs, and find out how uncertain it is.

    Raises:
      UserError: there are too few runs, or they cannot tell N from D.
    """
    _check(ladder, gathered)
    search = Search(over_estimate_penalty=ladder.fit.over_estimate_penalty)
    laws = [LAWS[name] for name in ladder.fit.laws]
    runs, budgets = gathered.runs, gathered.budgets
    try:
        choice = choose_law(laws, runs, budgets, search)
    except ValueError as error:
        raise UserError(f"{ladder.run_dir}: {error}") from None
    fit = choice.fit
    spare = max(runs.number - len(fit.law.names), 1)
    noise = float(np.sqrt((fit.residuals**2).sum() / spare))
    return FittedLadder(
        fit,
        tuple(bootstrap(fit, runs, count=ladder.fit.bootstraps, search=search)),
        noise,
        tuple(choice.rollouts[fit.law.name]),
        choice.scores,
        Cost.of(runs, gathered.flops),
        loss,
        ladder.fit.count,
        runs.number,
        float(gathered.flops.max()),
    )


def _check(ladder: LadderConfig, gathered: Gathered) -> None:
    least = min(len(LAWS[name].names) for name in ladder.fit.laws) + 1
    if gathered.runs.number < least:
        raise UserError(
            f"{ladder.run_dir}: {gathered.runs.number} rungs can be used and a law needs {least} or more; run the "
            "others: maxlm ladder run, or see why they are left out: maxlm ladder status"
        )
    for name, values in (
        ("sizes", gathered.runs.parameters),
        ("token counts", gathered.runs.tokens),
    ):
        if len(set(values)) < 3:
            raise UserError(
                f"{ladder.run_dir}: the rungs that can be used have {len(set(values))} different {name}; a law needs 3"
            )
    ratios = np.log(gathered.runs.tokens / gathered.runs.parameters)
    if np.ptp(ratios) < np.log(1.5):
        raise UserError(
            f"{ladder.run_dir}: all rungs that can be used have about {np.exp(ratios.mean()):.3g} tokens per "
            "parameter, so that what N does and what D does cannot be told apart; add budgets"
        )


def hold_out_largest(ladder: LadderConfig, gathered: Gathered) -> HeldOut | None:
    """Return the prediction of the largest budget by a fit without it: what counts of a law."""
    search = Search(over_estimate_penalty=ladder.fit.over_estimate_penalty)
    law = LAWS[ladder.fit.laws[0]]
    found = list(rollouts(law, gathered.runs, gathered.budgets, search))
    largest = gathered.budgets.max() if len(gathered.budgets) else None
    return found[-1] if found and found[-1].flops == largest else None


# --- as a file ------------------------------------------------------------------------------------


def to_json(fitted: FittedLadder) -> dict[str, Any]:
    """Return everything as plain data."""
    fit = fitted.fit
    return {
        "version": VERSION,
        "law": fit.law.name,
        "paper": fit.law.paper,
        "numbers": {name: one._asdict() for name, one in fitted.numbers().items()},
        "units": fit.units._asdict(),
        "in_units": list(map(float, fit.numbers)),
        "bootstraps": [list(map(float, one.numbers)) for one in fitted.bootstraps],
        "residuals": list(map(float, fit.residuals)),
        "noise": fitted.noise,
        "held_out": [
            {"fitted": one.fitted, "budget": one.flops, "errors": list(map(float, one.errors))}
            for one in fitted.held_out
        ],
        "scores": {k: v if np.isfinite(v) else None for k, v in fitted.scores.items()},
        "cost": fitted.cost._asdict(),
        "loss": fitted.loss,
        "count": fitted.counts,
        "runs": fitted.runs,
        "largest_flops": fitted.largest_flops,
    }


def read_fitted(path: Path) -> FittedLadder:
    """Read what `maxlm ladder fit` wrote.

    Raises:
      UserError: the file is not there, or is not such a file.
    """
    try:
        data = json.loads(read_regular(path))
        return _from_json(data)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; make it: maxlm ladder fit LADDER.yaml"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is not a fit that this version reads; make it again: maxlm ladder fit LADDER.yaml"
        ) from None


def _from_json(data: dict[str, Any]) -> FittedLadder:
    if data["version"] != VERSION:
        raise ValueError(data["version"])
    law, units = LAWS[data["law"]], Units(**data["units"])
    none = np.zeros(0)
    fit = Fit(law, np.array(data["in_units"]), units, np.array(data["residuals"]))
    scores = {k: float("inf") if v is None else v for k, v in data["scores"].items()}
    return FittedLadder(
        fit,
        tuple(Fit(law, np.array(one), units, none) for one in data["bootstraps"]),
        data["noise"],
        tuple(
            HeldOut(law.name, one["fitted"], one["budget"], np.array(one["errors"]))
            for one in data["held_out"]
        ),
        scores,
        Cost(**data["cost"]),
        data["loss"],
        data["count"],
        data["runs"],
        data["largest_flops"],
    )


def published(name: str) -> Fit:
    """Return a published law as a fit without intervals: `chinchilla` or `replication`."""
    numbers = PUBLISHED[name]
    return Fit(LAWS["surface"], np.array(numbers), Units(1.0, 1.0), np.zeros(0))


PUBLISHED = {
    "chinchilla": (1.69, 406.4, 410.7, 0.34, 0.28),
    "replication": (1.8172, 482.01, 2085.43, 0.3478, 0.3658),
}
"""(E, A, B, a, b): arXiv:2203.15556, section D.3, and the replication of its fit,
arXiv:2404.10102, which found the published numbers to miss the published runs.
"""
