"""How good a classifier's probabilities are: accuracy, area under the curve, calibration error."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

BINS = 10


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of texts on the right side of one half."""
    return float(((probabilities >= 0.5) == labels).mean())


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the probability that a good text scores above a bad one; ties count one half."""
    good = int(labels.sum())
    bad = labels.size - good
    return float((rankdata(scores)[labels].sum() - good * (good + 1) / 2) / (good * bad))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the expected calibration error over ten bins of equal width (arXiv:1706.04599, eq. 3)."""
    bins = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    difference = np.bincount(bins, probabilities - labels, BINS)
    return float(np.abs(difference).sum() / labels.size)
