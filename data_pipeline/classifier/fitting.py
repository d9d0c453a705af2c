"""Fit a logistic regression with an L2 penalty, and Platt's calibration of its scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit

MOST_STEPS = 2000
_GRADIENT = 1e-7  # of the mean loss, in any parameter, when the fit ends


class Fit(NamedTuple):
    """Weights (num_features,), the bias, and the largest part of the gradient that is left."""

    weights: np.ndarray
    bias: float
    gradient: float

    @property
    def converged(self) -> bool:
        """Whether the gradient is as good as zero."""
        return self.gradient < 10 * _GRADIENT


def fit_logistic(features: csr_array, labels: np.ndarray, *, l2: float) -> Fit:
    """Minimise mean(log(1 + exp(-y z))) + l2 / 2 |w|^2, with z = X w + b and y = 1 or -1.

    The bias has no penalty. The problem is strictly convex, so the minimum is the only one.

    Args:
      features: X, float (num_texts, num_features).
      labels: bool (num_texts,), true for y = 1.
      l2: the penalty of weights, above zero.
    """
    signs = np.where(labels, 1.0, -1.0)
    columns = features.T.tocsr()

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        margins = signs * (features @ weights + bias)
        loss = np.logaddexp(0, -margins).mean() + l2 / 2 * (weights @ weights)
        slopes = -signs * expit(-margins) / signs.size
        return loss, np.append(columns @ slopes + l2 * weights, slopes.sum())

    start = np.zeros(features.shape[1] + 1)
    options = {"maxiter": MOST_STEPS, "maxfun": 2 * MOST_STEPS, "gtol": _GRADIENT, "ftol": 0.0}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return Fit(found.x[:-1], float(found.x[-1]), float(np.abs(found.jac).max()))


def fit_calibration(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return (slope, shift) so that sigmoid(slope * score + shift) is a probability.

    It is the maximum likelihood fit on scores of texts that the model has not seen, with targets a
    little within 0 and 1, so that separable scores have one too (Platt 1999, 2.2).
    """
    good = int(labels.sum())
    targets = np.where(labels, (good + 1) / (good + 2), 1 / (labels.size - good + 2))
    # Centred and scaled: the two parameters are then about independent.
    mean, scale = scores.mean(), scores.std() or 1.0
    unit = (scores - mean) / scale

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = parameters[0] * unit + parameters[1]
        loss = np.logaddexp(0, logits).mean() - (targets * logits).mean()
        error = expit(logits) - targets
        return loss, np.array([(error * unit).mean(), error.mean()])

    found = minimize(objective, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9})
    slope = float(found.x[0] / scale)
    return slope, float(found.x[1] - slope * mean)
