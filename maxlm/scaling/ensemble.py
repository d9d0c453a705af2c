"""What several laws say together of a run: a mixture, weighted by how well each foretold.

A law that fits all runs is still wrong beyond them, and the more so the further. So the loss of a
run at distance d (log FLOPs beyond the largest fitted run) is, by law l with weight w_l,

    log L ~ N(log L_lb, n_l^2 + (s_l d)^2)

b is one of the law's bootstraps, all equally likely: how uncertain its numbers are. n_l is the
scatter of runs about the law. s_l is how fast the law drifts off, one of `DRIFTS`, as likely as its
rollouts made it. The forecast is the median of the mixture, the interval lies between two of its
quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from maxlm.scaling.select import DRIFTS, Judged

_LEAST_SIGMA = 1e-9


def loss_quantiles(
    laws: Sequence[Judged],
    run: tuple[float, float, float],
    *,
    distance: float,
    shares: Sequence[float],
) -> list[float]:
    """Return the losses below which a run lies with given probabilities.

    Args:
      laws: with weights whose sum is 1.
      run: its N, D, and U, the different tokens among D.
      distance: log FLOPs beyond the largest fitted run; below 0 is 0.
      shares: the probabilities.
    """
    heavy = [one for one in laws if one.weight > 0]
    centres = [np.log([float(b.predict(*run)) for b in one.bootstraps]) for one in heavy]
    sigmas = [np.hypot(max(one.noise, _LEAST_SIGMA), DRIFTS * max(distance, 0.0)) for one in heavy]

    def below(log_loss: float) -> float:
        total = 0.0
        for one, centre, sigma in zip(heavy, centres, sigmas, strict=True):
            within = ndtr((log_loss - centre[:, None]) / sigma).mean(axis=0)
            total += one.weight * float(within @ one.drifts)
        return total

    reach = 9 * max(float(sigma.max()) for sigma in sigmas)
    low, high = min(c.min() for c in centres) - reach, max(c.max() for c in centres) + reach
    return [float(np.exp(brentq(lambda x, s=share: below(x) - s, low, high))) for share in shares]
