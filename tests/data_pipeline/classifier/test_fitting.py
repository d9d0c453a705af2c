"""The fit is the optimum; probabilities are what happens; figures against their definitions."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.sparse import csr_array

from data_pipeline.classifier.figures import accuracy, area_under_curve, calibration_error
from data_pipeline.classifier.fitting import fit_calibration, fit_logistic


def problem(seed: int, texts: int = 200, features: int = 12):
    random = np.random.default_rng(seed)
    dense = random.poisson(0.5, (texts, features)) * random.uniform(0.1, 1, (texts, features))
    logits = dense @ random.normal(0, 2, features) - 0.7
    return dense, random.uniform(size=texts) < 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize(("seed", "l2"), [(0, 1e-3), (1, 1e-5), (2, 0.5)])
def test_the_fit_is_the_optimum(seed: int, l2: float) -> None:
    dense, labels = problem(seed)
    fit = fit_logistic(csr_array(dense), labels, l2=l2)

    def loss(parameters):
        logits = dense @ parameters[:-1] + parameters[-1]
        wrong = np.where(labels, -logits, logits)
        penalty = l2 / 2 * (parameters[:-1] ** 2).sum()
        return np.log1p(np.exp(wrong)).mean() + penalty

    # Its gradient by central differences is zero, and another minimiser finds the same place.
    found = np.append(fit.weights, fit.bias)
    steps = 1e-5 * np.eye(found.size)
    gradient = [(loss(found + step) - loss(found - step)) / 2e-5 for step in steps]
    assert np.abs(gradient).max() < 1e-6
    assert fit.converged
    other = minimize(
        loss, np.zeros(found.size), method="SLSQP", options={"ftol": 1e-14, "maxiter": 500}
    )
    assert loss(found) <= other.fun + 1e-10
    assert np.abs(found - other.x).max() < 0.02 * max(1, np.abs(found).max())


def test_a_fit_that_is_cut_short_says_so(monkeypatch) -> None:
    monkeypatch.setattr("data_pipeline.classifier.fitting.MOST_STEPS", 2)
    dense, labels = problem(0)
    assert not fit_logistic(csr_array(dense), labels, l2=1e-5).converged


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.3, 2.0), (4.0, -30.0)])
def test_calibration_finds_the_sigmoid_that_made_the_labels(slope: float, shift: float) -> None:
    random = np.random.default_rng(3)
    scores = random.normal(-shift / slope, 2 / slope, 20_000)
    true = 1 / (1 + np.exp(-(slope * scores + shift)))
    labels = random.uniform(size=scores.size) < true
    found = fit_calibration(scores, labels)
    estimated = 1 / (1 + np.exp(-(found[0] * scores + found[1])))
    assert np.abs(estimated - true).max() < 0.02
    assert calibration_error(estimated, labels) < 0.015
    raw = 1 / (1 + np.exp(-scores))
    if (slope, shift) != (1.0, 0.0):
        assert calibration_error(raw, labels) > 0.05


def test_calibration_of_scores_that_part_the_kinds_is_finite() -> None:
    scores = np.array([-2.0, -1.0, 1.0, 2.0])
    slope, shift = fit_calibration(scores, scores > 0)
    probabilities = 1 / (1 + np.exp(-(slope * scores + shift)))
    assert 0.7 < probabilities[2:].mean() < 0.8  # the target is (2 + 1) / (2 + 2)
    same = fit_calibration(np.ones(8), np.array([True] * 6 + [False] * 2))
    assert 1 / (1 + np.exp(-(same[0] + same[1]))) == pytest.approx(
        (6 * 7 / 8 + 2 / 4) / 8, abs=1e-6
    )


def test_figures() -> None:
    random = np.random.default_rng(4)
    scores, labels = random.integers(0, 10, 60) / 10, random.uniform(size=60) < 0.4
    pairs = [(good, bad) for good in scores[labels] for bad in scores[~labels]]
    wins = sum((good > bad) + (good == bad) / 2 for good, bad in pairs)
    assert area_under_curve(scores, labels) == pytest.approx(wins / len(pairs))
    right = sum((score >= 0.5) == label for score, label in zip(scores, labels, strict=True))
    assert accuracy(scores, labels) == pytest.approx(right / 60)
    assert calibration_error(
        np.array([0.95, 1.0, 0.2]), np.array([True, True, False])
    ) == pytest.approx(0.25 / 3)
