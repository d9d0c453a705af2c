"""Several laws together: which foretold best, how errors grow with the distance, and forecasts of runs
that no law made.
"""

from __future__ import annotations

import numpy as np
import pytest

from maxlm.scaling.ensemble import loss_quantiles
from maxlm.scaling.fit import Fit
from maxlm.scaling.laws import LAWS
from maxlm.scaling.runs import Runs, Units
from maxlm.scaling.select import (
    DRIFTS,
    HeldOut,
    Judged,
    budget_levels,
    judge_laws,
    log_likelihoods,
    rollouts,
)

BESIROGLU = (1.8172, 482.01, 2085.43, 0.3478, 0.3658)
ALL_DRIFTS = np.full(len(DRIFTS), 1 / len(DRIFTS))


def surface(sizes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    constant, of_size, of_tokens, a, b = BESIROGLU
    return constant + of_size / sizes**a + of_tokens / tokens**b


def isoflop(budgets: np.ndarray, sizes: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sizes, tokens and FLOPs of runs."""
    flops = np.repeat(budgets, sizes)
    size = np.tile(np.geomspace(1e6, 1e8, sizes), len(budgets))
    return size, flops / (6 * size), flops


@pytest.mark.parametrize("name", ["surface", "kaplan"])
def test_the_law_that_predicts_larger_budgets_weighs_most(name: str):
    sizes, tokens, flops = isoflop(np.geomspace(1e15, 1e18, 5))
    losses = {
        "surface": surface(sizes, tokens),
        "kaplan": ((8.8e13 / sizes) ** (0.076 / 0.095) + 5.4e13 / tokens) ** 0.095,
    }[name]
    noise = np.exp(1e-4 * np.random.default_rng(0).standard_normal(30))
    laws = [LAWS["surface"], LAWS["kaplan"]]
    judged = judge_laws(laws, Runs.of(sizes, tokens, losses * noise), flops, count=20)
    assert judged[0].fit.law.name == name
    assert judged[0].weight > 0.9
    assert judged[0].score < judged[1].score
    assert sum(one.weight for one in judged) == pytest.approx(1)
    assert [one.fitted for one in judged[0].rollouts] == [12, 12, 12, 18, 18, 24]


def test_rollouts_use_smaller_budgets_alone():
    sizes, tokens, flops = isoflop(np.array([1e15, 1e16, 1e17, 1e18]))
    losses = surface(sizes, tokens)
    losses[flops > 5e16] *= 1.1  # the law changes beyond what was seen
    one, two, three = rollouts(LAWS["surface"], Runs.of(sizes, tokens, losses), flops)
    for held_out, budget in ((one, 1e17), (two, 1e18)):
        np.testing.assert_allclose(held_out.errors, 1 / 1.1 - 1, rtol=1e-3)
        assert held_out.fitted == 12
        assert held_out.distance == pytest.approx(np.log(budget / 1e16))
    assert (three.fitted, three.largest) == (18, 1e17)


def test_laws_are_weighed_by_rollouts_that_all_of_them_have():
    """Farseer's nine numbers need more runs: its first cut is later, and counts for all."""
    sizes, tokens, flops = isoflop(np.geomspace(1e15, 1e16, 4), sizes=4)
    losses = surface(sizes, tokens) * np.exp(
        2e-3 * np.random.default_rng(0).standard_normal(len(sizes))
    )
    laws = [LAWS["surface"], LAWS["farseer"]]
    judged = judge_laws(laws, Runs.of(sizes, tokens, losses), flops, count=20)
    by_name = {one.fit.law.name: one for one in judged}
    assert len({one.largest for one in by_name["farseer"].rollouts}) == 1
    assert len({one.largest for one in by_name["surface"].rollouts}) == 2
    last = [one for one in by_name["surface"].rollouts if one.fitted == 12]
    evidence = [np.exp(log_likelihoods(own)).mean() for own in (last, by_name["farseer"].rollouts)]
    weights = [by_name[name].weight for name in ("surface", "farseer")]
    assert weights[0] / weights[1] == pytest.approx(evidence[0] / evidence[1])


def test_drift_is_what_rollouts_show():
    """Errors of 2 % per unit of log FLOPs, at several distances."""
    rng, held_out = np.random.default_rng(0), []
    for largest in 10.0 ** np.arange(40):
        slope = 0.02 * rng.standard_normal()
        for factor in (3, 10):
            error = np.expm1(slope * np.log(factor) + 1e-3 * rng.standard_normal())
            held_out.append(HeldOut("any", 8, largest, largest * factor, np.array([error]), 1e-6))
    likelihoods = log_likelihoods(held_out)
    assert DRIFTS[likelihoods.argmax()] == pytest.approx(0.02, rel=0.3)


def test_levels_are_budgets_or_bins():
    assert list(budget_levels(np.array([1.0, 1.02, 2.0, 0.99, 4.1, 3.95]))) == [0, 0, 1, 0, 2, 2]
    many = budget_levels(np.geomspace(1e15, 1e18, 60))
    assert many.max() == 7
    assert np.all(np.diff(many) >= 0)


def test_quantiles_are_those_of_draws():
    """Against a sample of the model as it is written down."""
    rng = np.random.default_rng(0)
    laws, draws = [], []
    likely = np.exp(-0.5 * (np.log(DRIFTS / 0.01) / 0.7) ** 2)
    likely /= likely.sum()
    for law, numbers, noise, weight in (
        ("surface", (1.8, 0.5, 0.7, 0.3, 0.4), 0.004, 0.3),
        ("kaplan", (9.0, 3.0, 0.1, 0.2), 0.01, 0.7),
    ):
        spread = [
            np.array(numbers) * (1 + 0.01 * rng.standard_normal(len(numbers))) for _ in range(50)
        ]
        fits = tuple(Fit(LAWS[law], one, Units(1e6, 1e8), np.zeros(0)) for one in spread)
        laws.append(Judged(fits[0], fits, noise, (), likely, weight))
        centres = np.log([float(one.predict(5e7, 3e9)) for one in fits])
        count = round(400_000 * weight)
        drift = rng.choice(DRIFTS, count, p=likely)
        draws.append(
            rng.choice(centres, count)
            + noise * rng.standard_normal(count)
            + drift * 3.0 * rng.standard_normal(count)
        )
    shares = (0.05, 0.5, 0.95)
    run = 5e7, 3e9, 3e9
    found = loss_quantiles(laws, run, distance=3.0, shares=shares)
    expected = np.exp(np.quantile(np.concatenate(draws), shares))
    np.testing.assert_allclose(found, expected, rtol=3e-3)
    near = loss_quantiles(laws, run, distance=-1.0, shares=shares)
    assert near[2] - near[0] < found[2] - found[0]


def missing_law(rng: np.random.Generator, kind: str, sizes: np.ndarray, tokens: np.ndarray):
    """Return the losses of a random law of a kind that is not fitted."""
    size, data = sizes / 2e5, tokens / 8e5
    constant, of_size, of_tokens = rng.uniform(0.2, 2), *rng.uniform(0.4, 1.2, 2)
    a, b = rng.uniform(0.2, 0.5, 2)
    if kind == "broken":  # the power of data changes on the way (arXiv:2210.14891)
        bend, where = rng.uniform(-0.15, 0.2), 10 ** rng.uniform(-0.3, 0.6)
        of_data = data**-b * (1 + (data / where) ** 2) ** (-bend / 2)
        return constant + of_size * size**-a + of_tokens * of_data
    # How fast data helps depends on the size (arXiv:2506.10972).
    power = b * size ** rng.uniform(-0.1, 0.1)
    return constant + of_size * size**-a + of_tokens * size ** rng.uniform(-0.1, 0.1) * data**-power


def forecasts_of_missing_laws(trials: int, kind: str, seed: int) -> dict[str, float]:
    """Return how often intervals of 90 % hold a run of 30 times the FLOPs: of all laws together, and
    of the bootstraps of the heaviest alone.
    """
    rng, hits = np.random.default_rng(seed), dict.fromkeys(("together", "one law"), 0)
    sizes, tokens, flops = isoflop(np.geomspace(1.6e11, 8e11, 5), sizes=4)
    sizes = np.tile(np.geomspace(9e4, 3.4e5, 4), 5)
    tokens = flops / (6 * sizes)
    target = 7e5, 30 * 8e11 / (6 * 7e5)
    for _ in range(trials):
        at = np.append(sizes, target[0]), np.append(tokens, target[1])
        losses = missing_law(rng, kind, *at) * np.exp(2e-3 * rng.standard_normal(len(sizes) + 1))
        runs = Runs.of(sizes, tokens, losses[:-1])
        judged = judge_laws([LAWS["surface"], LAWS["kaplan"]], runs, flops, count=40)
        run = *target, target[1]
        low, high = loss_quantiles(judged, run, distance=np.log(30), shares=(0.05, 0.95))
        hits["together"] += low <= losses[-1] <= high
        alone = [float(one.predict(*target)) for one in judged[0].bootstraps]
        low, high = np.quantile(alone, (0.05, 0.95))
        hits["one law"] += low <= losses[-1] <= high
    return {name: count / trials for name, count in hits.items()}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_intervals_hold_more_runs_of_a_law_that_is_not_fitted_than_one_law_does(record_property):
    """They are far from holding 90 % of them: benchmarks/scaling.md."""
    shares = forecasts_of_missing_laws(30, "farseer", seed=0)
    for name, share in shares.items():
        record_property(name, share)
    assert shares["together"] >= shares["one law"] + 0.25, shares
