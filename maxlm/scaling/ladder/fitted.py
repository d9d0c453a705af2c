"""A fitted ladder: its laws with their weights, how well they foretold, what they say of any budget;
as a file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maxlm.config.errors import UserError
from maxlm.config.ladder import LadderConfig
from maxlm.files import read_regular
from maxlm.scaling.ensemble import loss_quantiles
from maxlm.scaling.fit import Fit, Search, interval
from maxlm.scaling.ladder.results import Gathered
from maxlm.scaling.laws import LAWS
from maxlm.scaling.optimum import Cost, Optimum, best_size
from maxlm.scaling.runs import Units, unidentified
from maxlm.scaling.select import HeldOut, Judged, budget_levels, judge_laws

COVERAGE = 0.9
VERSION = 3


class Range(NamedTuple):
    """A number and its interval of 90 %."""

    value: float
    low: float
    high: float


class FittedLadder(NamedTuple):
    """What a ladder says.

    Attributes:
      laws: the heaviest first, which is the one whose numbers and optimum are shown.
      cost: FLOPs per token as a function of N.
      loss: the metric.
      counts: what N counts, as `fit.count`.
      runs: how many it is fitted to.
      largest_flops: the most that any of them spent.
    """

    laws: tuple[Judged, ...]
    cost: Cost
    loss: str
    counts: str
    runs: int
    largest_flops: float

    @property
    def fit(self) -> Fit:
        """The law that foretold best."""
        return self.laws[0].fit

    def loss_at(self, parameters: float, tokens: float, unique: float | None = None) -> Range:
        """Predict the loss of one run by all laws together, with the interval that holds it with
        90 % confidence (`maxlm.scaling.ensemble`).

        Args:
          parameters: N, as `counts` says.
          tokens: D.
          unique: U, the different ones among them, None for all.
        """
        run = parameters, tokens, tokens if unique is None else unique
        distance = np.log(self.cost.flops(parameters, tokens) / self.largest_flops)
        tail = (1 - COVERAGE) / 2
        low, middle, high = loss_quantiles(
            self.laws, run, distance=float(distance), shares=(tail, 0.5, 1 - tail)
        )
        return Range(middle, low, high)

    def best_at(self, flops: float) -> dict[str, Range]:
        """Return N, D, D / N and loss of the best use of a budget, each with its interval.

        N, D and their intervals are those of the law that foretold best, the loss there is by all.
        No token is read twice.

        Raises:
          UserError: the law names no best size there.
        """
        try:
            central = best_size(self.fit, flops, self.cost)
        except ValueError as error:
            raise UserError(str(error)) from None
        others = list[Optimum]()
        for one in self.laws[0].bootstraps:
            try:
                others.append(best_size(one, flops, self.cost))
            except ValueError:
                continue  # one reweighting without an optimum is part of the spread it leaves
        if not others:
            raise UserError(
                f"the {self.fit.law.name} law names a best size at {flops:g} FLOPs, and none of its fits to reweighted "
                "runs does; add runs"
            )
        names = ("parameters", "tokens", "tokens_per_parameter")
        found = {
            name: Range(
                getattr(central, name), *interval([getattr(one, name) for one in others], COVERAGE)
            )
            for name in names
        }
        return {**found, "loss": self.loss_at(central.parameters, central.tokens)}

    def numbers(self) -> dict[str, Range]:
        """Return the numbers of the law that foretold best, with their intervals."""
        return numbers_of(self.laws[0])


def numbers_of(law: Judged) -> dict[str, Range]:
    """Return a law's numbers with the intervals that hold the middle 90 % of its bootstraps."""
    raws = [one.raw for one in law.bootstraps]
    return {
        name: Range(value, *interval([raw[name] for raw in raws], COVERAGE))
        for name, value in law.fit.raw.items()
    }


def fit_ladder(ladder: LadderConfig, gathered: Gathered, loss: str) -> FittedLadder:
    """Fit every law to all runs and weigh it by its rollouts.

    Raises:
      UserError: there are too few runs, or they cannot tell N from D.
    """
    _check(ladder, gathered)
    search = Search(over_estimate_penalty=ladder.fit.over_estimate_penalty)
    laws = [LAWS[name] for name in ladder.fit.laws]
    runs, flops = gathered.runs, gathered.flops
    try:
        judged = judge_laws(laws, runs, flops, count=ladder.fit.bootstraps, search=search)
    except ValueError as error:
        raise UserError(f"{ladder.run_dir}: {error}") from None
    return FittedLadder(
        tuple(judged),
        Cost.of(runs, flops),
        loss,
        ladder.fit.count,
        runs.number,
        float(flops.max()),
    )


def _check(ladder: LadderConfig, gathered: Gathered) -> None:
    least = min(len(LAWS[name].names) for name in ladder.fit.laws) + 1
    if gathered.runs.number < least:
        raise UserError(
            f"{ladder.run_dir}: {gathered.runs.number} rungs can be used and a law needs {least} or more; run the "
            "others: maxlm ladder run, or see why they are left out: maxlm ladder status"
        )
    if why := unidentified(gathered.runs):
        raise UserError(f"{ladder.run_dir}: the rungs that can be used {why}")


class LargestHeldOut(NamedTuple):
    """The largest budget, foretold by a ladder without it.

    Attributes:
      fitted: how many smaller runs there are.
      errors: predicted / measured - 1 of each of its runs.
      inside: how many of them lie in their interval.
      width: of the interval over the prediction, the largest.
    """

    fitted: int
    errors: np.ndarray
    inside: int
    width: float


def hold_out_largest(ladder: LadderConfig, gathered: Gathered, loss: str) -> LargestHeldOut | None:
    """Foretell the largest budget from the smaller ones alone, as a target is; None if they are too
    few.
    """
    levels = budget_levels(gathered.flops) if gathered.runs.number else np.zeros(0, int)
    smaller = np.flatnonzero(levels < levels.max(initial=0))
    try:
        fitted = fit_ladder(ladder, gathered.only(smaller), loss)
    except UserError:
        return None
    largest = gathered.runs.only(levels == levels.max())
    asked = zip(largest.parameters, largest.tokens, largest.unique_tokens, strict=True)
    found = np.array([fitted.loss_at(*map(float, run)) for run in asked])
    values, low, high = found.T
    inside = (low <= largest.losses) & (largest.losses <= high)
    errors, width = values / largest.losses - 1, float(((high - low) / values).max())
    return LargestHeldOut(fitted.runs, errors, int(inside.sum()), width)


# --- as a file ------------------------------------------------------------------------------------


def to_json(fitted: FittedLadder) -> dict[str, Any]:
    """Return everything as plain data."""
    return {
        "version": VERSION,
        "laws": [_law_to_json(law) for law in fitted.laws],
        "cost": fitted.cost._asdict(),
        "loss": fitted.loss,
        "count": fitted.counts,
        "runs": fitted.runs,
        "largest_flops": fitted.largest_flops,
    }


def _law_to_json(law: Judged) -> dict[str, Any]:
    fit = law.fit
    return {
        "law": fit.law.name,
        "paper": fit.law.paper,
        "weight": law.weight,
        "numbers": {name: one._asdict() for name, one in numbers_of(law).items()},
        "units": fit.units._asdict(),
        "in_units": fit.numbers.tolist(),
        "bootstraps": [one.numbers.tolist() for one in law.bootstraps],
        "residuals": fit.residuals.tolist(),
        "noise": law.noise,
        "rollouts": [{**one._asdict(), "errors": one.errors.tolist()} for one in law.rollouts],
        "drifts": law.drifts.tolist(),
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
    return FittedLadder(
        tuple(_law_from_json(one) for one in data["laws"]),
        Cost(**data["cost"]),
        data["loss"],
        data["count"],
        data["runs"],
        data["largest_flops"],
    )


def _law_from_json(data: dict[str, Any]) -> Judged:
    law, units = LAWS[data["law"]], Units(**data["units"])
    none = np.zeros(0)
    return Judged(
        Fit(law, np.array(data["in_units"]), units, np.array(data["residuals"])),
        tuple(Fit(law, np.array(one), units, none) for one in data["bootstraps"]),
        data["noise"],
        tuple(HeldOut(**{**one, "errors": np.array(one["errors"])}) for one in data["rollouts"]),
        np.array(data["drifts"]),
        data["weight"],
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
