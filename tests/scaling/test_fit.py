"""Fitted laws: constants recovered, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest

from maxlm.scaling.fit import Fit, Search, bootstrap, fit_law, interval
from maxlm.scaling.isoflop import fit_isoflop
from maxlm.scaling.laws import LAWS
from maxlm.scaling.optimum import Cost, best_size, optimum_exponents
from maxlm.scaling.runs import Runs, Units

HOFFMANN = (1.69, 406.4, 410.7, 0.34, 0.28)
BESIROGLU = (1.8172, 482.01, 2085.43, 0.3478, 0.3658)


def grid(sizes: int = 6, ratios: int = 5) -> tuple[np.ndarray, np.ndarray]:
    size, ratio = np.meshgrid(np.geomspace(5e6, 1e9, sizes), np.geomspace(5, 160, ratios))
    return size.ravel(), (size * ratio).ravel()


def surface(numbers: tuple[float, ...], sizes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    constant, of_size, of_tokens, a, b = numbers
    return constant + of_size / sizes**a + of_tokens / tokens**b


def random_surfaces(count: int) -> list[tuple[float, ...]]:
    rng = np.random.default_rng(5)
    return [
        (rng.uniform(0.5, 2.5), *10 ** rng.uniform(1, 4, 2), *rng.uniform(0.2, 0.6, 2))
        for _ in range(count)
    ]


@pytest.mark.parametrize("numbers", [HOFFMANN, BESIROGLU, *random_surfaces(20)])
def test_constants_of_a_noise_free_surface_are_recovered(numbers: tuple[float, ...]):
    sizes, tokens = grid()
    fit = fit_law(LAWS["surface"], Runs.of(sizes, tokens, surface(numbers, sizes, tokens)))
    found = np.array([fit.raw[name] for name in ("E", "A", "B", "a", "b")])
    np.testing.assert_allclose(found, numbers, rtol=1e-4)
    # The best size grows as C^(b / (a + b)): Hoffmann et al., eq. 4.
    a, b = numbers[3:]
    np.testing.assert_allclose(optimum_exponents(fit), (b / (a + b), a / (a + b)), atol=1e-6)


@pytest.mark.parametrize("name", ["coupled", "kaplan", "farseer", "repeated"])
def test_other_laws_recover_what_they_made(name: str):
    law, (sizes, tokens) = LAWS[name], grid(8, 8)
    numbers = {
        "coupled": (0.8, 0.9, 0.6, 0.5, 0.6, 0.7),
        "kaplan": (2.1, 1.9, 0.076, 0.095),
        "farseer": (-0.3, -0.9, 0.1, 0.2, -0.3, -0.1, 0.3, 0.4, -0.1),
        "repeated": (1.5, 0.7, 0.9, 0.35, 0.37, 15.0, 5.0),
    }[name]
    plain = Runs.of(sizes, tokens, np.ones(len(sizes)), np.minimum(tokens, 3e9))
    units = plain.over(Units.of(plain))
    losses = law.predict(np.array(numbers), units)
    fit = fit_law(law, plain._replace(losses=losses), Search(num_starts=12))
    assert np.abs(fit.residuals).max() < (1e-6 if name != "farseer" else 1e-3)


def test_numbers_are_those_of_the_papers():
    """The raw numbers in the formulas as they are published, N and D as they are."""
    sizes, tokens = grid()
    units = Units(3e7, 2e9)
    fit = Fit(LAWS["kaplan"], np.array([2.1, 1.9, 0.076, 0.095]), units, np.zeros(0))
    raw = fit.raw
    inner = (raw["Nc"] / sizes) ** (raw["aN"] / raw["aD"]) + raw["Dc"] / tokens
    np.testing.assert_allclose(fit.predict(sizes, tokens), inner ** raw["aD"], rtol=1e-9)
    fit = Fit(LAWS["coupled"], np.array([0.8, 0.9, 0.6, 0.5, 0.6, 0.7]), units, np.zeros(0))
    raw = fit.raw
    inner = raw["A"] / sizes ** raw["a"] + raw["B"] / tokens ** raw["b"]
    np.testing.assert_allclose(fit.predict(sizes, tokens), raw["E"] + inner ** raw["k"], rtol=1e-9)


@pytest.mark.parametrize("name", ["surface", "coupled", "kaplan"])
def test_searches_are_at_their_end(name: str, monkeypatch: pytest.MonkeyPatch):
    """Few runs over a short range, of another law: intervals are not of searches that were cut off."""
    sizes, flops = np.tile(np.geomspace(9e4, 3.4e5, 4), 3), np.repeat([1.6e11, 2.4e11, 3.6e11], 4)
    tokens = flops / (6 * sizes)
    losses = 1.5 + (sizes / 2e5) ** -0.3 + 0.6 * (tokens / 8e5) ** -0.4
    noise = np.exp(2e-3 * np.random.default_rng(0).standard_normal(12))
    runs, ends = Runs.of(sizes, tokens, losses * noise), []
    for most in (200, 800):
        monkeypatch.setattr("maxlm.scaling.fit.MOST_STEPS", most)
        fits = bootstrap(fit_law(LAWS[name], runs), runs, count=20)
        ends.append(interval([float(one.predict(7e5, 5.7e6)) for one in fits]))
    np.testing.assert_allclose(*ends, rtol=1e-3)


def test_a_loss_that_falls_to_nothing_has_no_constant():
    sizes, tokens = grid()
    numbers = (0.0, 40.0, 60.0, 0.3, 0.3)
    fit = fit_law(LAWS["surface"], Runs.of(sizes, tokens, surface(numbers, sizes, tokens)))
    assert fit.raw["E"] == pytest.approx(0, abs=1e-6)


def coverage(trials: int, count: int) -> dict[str, float]:
    """Return how often a 90 % interval covers the truth, for a prediction and three numbers."""
    (sizes, tokens), rng = grid(), np.random.default_rng(1)
    losses, target = surface(BESIROGLU, sizes, tokens), (1e10, 2e11)
    truth = {
        "loss": surface(BESIROGLU, *map(np.array, target)),
        **dict(zip("EABab", BESIROGLU, strict=True)),
    }
    hits = dict.fromkeys(("loss", "E", "a", "b"), 0)
    for trial in range(trials):
        noise = np.exp(0.005 * rng.standard_normal(len(losses)))
        runs = Runs.of(sizes, tokens, losses * noise)
        fits = bootstrap(fit_law(LAWS["surface"], runs), runs, count=count, seed=trial)
        values = {"loss": [float(one.predict(*target)) for one in fits]}
        values |= {name: [one.raw[name] for one in fits] for name in ("E", "a", "b")}
        for name in hits:
            low, high = interval(values[name])
            hits[name] += low <= truth[name] <= high
    return {name: hit / trials for name, hit in hits.items()}


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say():
    shares = coverage(200, 200)
    assert all(0.85 <= share <= 0.95 for share in shares.values()), shares


def test_intervals_cover_the_truth():
    assert (
        coverage(20, 40)["loss"] >= 0.7
    )  # three standard deviations below 0.9; the slow test is strict


def test_parabolas_are_biased_by_skewed_sizes_and_the_surface_is_not():
    budgets = np.geomspace(1e18, 1e21, 5)
    _, of_size, of_tokens, a, b = BESIROGLU
    factor = (a * of_size / (b * of_tokens)) ** (1 / (a + b))
    best = factor * (budgets / 6) ** (b / (a + b))
    # Sizes from 1/2 of the best to 16 times the best, and the skew grows with the budget.
    sizes = best[:, None] * np.geomspace(0.5, 16, 7) * np.geomspace(1, 2, 5)[:, None]
    tokens = budgets[:, None] / (6 * sizes)
    losses = surface(BESIROGLU, sizes, tokens)
    runs, flops = Runs.of(sizes.ravel(), tokens.ravel(), losses.ravel()), np.repeat(budgets, 7)
    isoflop = fit_isoflop(runs, flops)
    truth = b / (a + b)
    assert abs(isoflop.power - truth) > 0.01
    fit = fit_law(LAWS["surface"], runs)
    assert abs(optimum_exponents(fit)[0] - truth) < 0.1 * abs(isoflop.power - truth)
    # And so is the best size itself, at a budget beyond all of them.
    far = 1e23
    true_size = factor * (far / 6) ** truth
    error = abs(np.log(best_size(fit, far).parameters / true_size))
    assert error < 0.1 * abs(np.log(isoflop.factor * far**isoflop.power / true_size))


def test_best_size_is_that_of_the_closed_form():
    sizes, tokens = grid()
    fit = fit_law(LAWS["surface"], Runs.of(sizes, tokens, surface(HOFFMANN, sizes, tokens)))
    _, of_size, of_tokens, a, b = HOFFMANN
    found = best_size(fit, 5.76e23)
    factor = (a * of_size / (b * of_tokens)) ** (1 / (a + b))
    assert found.parameters == pytest.approx(factor * (5.76e23 / 6) ** (b / (a + b)), rel=1e-4)
    assert found.parameters * found.tokens * 6 == pytest.approx(5.76e23)


def test_cost_is_read_from_runs_that_know_their_flops():
    sizes, tokens = grid()
    cost = Cost.of(Runs.of(sizes, tokens, tokens), 40 * sizes**0.9 * tokens)
    assert cost == pytest.approx((40, 0.9))


def test_penalty_for_over_estimates_follows_the_lower_edge():
    sizes, tokens = grid(8, 8)
    losses = surface(BESIROGLU, sizes, tokens)
    badly_tuned = np.random.default_rng(0).random(len(losses)) < 0.4
    runs = Runs.of(sizes, tokens, losses * np.where(badly_tuned, 1.03, 1.0))
    plain = fit_law(LAWS["surface"], runs)
    lower = fit_law(LAWS["surface"], runs, Search(over_estimate_penalty=20))
    truth = surface(BESIROGLU, *map(np.array, (1e10, 2e11)))
    error, with_penalty = (abs(float(f.predict(1e10, 2e11)) / truth - 1) for f in (plain, lower))
    assert with_penalty < max(error, 1e-3)


def test_too_few_runs_are_refused():
    sizes, tokens = grid(2, 2)
    with pytest.raises(ValueError, match="5 numbers and cannot be fitted to 4 runs"):
        fit_law(LAWS["surface"], Runs.of(sizes, tokens, tokens))
