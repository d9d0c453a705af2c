"""Whether sizes are the same at all widths: their spread, and how they grow with the width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from maxlm.scaling.coordcheck.activations import LOGITS, Sizes

ACTIVATION, CHANGE = "size", "change"


class Line(NamedTuple):
    """The size of one thing after one step, over widths.

    Attributes:
      layer: whose.
      kind: of what it returns, or of the change of that.
      step: steps done.
      sizes: geometric means over seeds, a number for each width.
      growth: the ratio of the sizes at the largest and the smallest width, by the straight line
        through logarithms of all sizes.
      judged: whether it must be the same at all widths.
    """

    layer: str
    kind: str
    step: int
    sizes: tuple[float, ...]
    growth: float
    judged: bool

    def is_flat(self, tolerance: float) -> bool:
        """Return whether the sizes neither grow nor fall by more than `tolerance`, such as 0.1."""
        return bool(abs(np.log(self.growth)) <= np.log1p(tolerance))


def lines_of(measured: Mapping[int, Sequence[Sizes]]) -> list[Line]:
    """Return a line for each layer, step, and activation or change, of sizes measured at several
    widths with several seeds.
    """
    widths = np.array(list(measured), np.float64)
    steps = sorted({one.step for one in next(iter(measured.values()))})
    layers = list(next(iter(measured.values()))[0].activations)
    lines = []
    for step in steps:
        for layer in layers:
            for kind in (ACTIVATION, CHANGE) if step else (ACTIVATION,):
                means = [_mean(of_width, layer, kind, step) for of_width in measured.values()]
                slope = np.polyfit(np.log(widths), np.log(means), 1)[0]
                growth = float((widths.max() / widths.min()) ** slope)
                # What the first values make of the logits falls with the width, and is meant to:
                # arXiv:2203.03466, appendix D.
                judged = not (layer == LOGITS and kind == ACTIVATION)
                lines.append(Line(layer, kind, step, tuple(means), growth, judged))
    return lines


def _mean(of_width: Sequence[Sizes], layer: str, kind: str, step: int) -> float:
    """Return the geometric mean over seeds."""
    sizes = [
        (one.activations if kind == ACTIVATION else one.changes)[layer]
        for one in of_width
        if one.step == step
    ]
    return float(np.exp(np.mean(np.log(np.maximum(sizes, 1e-30)))))
