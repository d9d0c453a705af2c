"""Rotary frequencies, plain or changed for long contexts, worked out in fp64.

With d numbers turned, pair i = 0 ... d / 2 - 1 has frequency f_i = theta^(-2i / d), radians per
position: it makes L f_i / 2 pi turns in L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from maxlm.config.positions.rope import RopePosition
from maxlm.config.positions.scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    NtkScaling,
    YarnScaling,
)


def frequencies(position: RopePosition, dim: int, length: int) -> np.ndarray:
    """Return fp64 radians per position of each pair.

    Args:
      position: theta and how it is scaled.
      dim: numbers that there are; those turned make dim / 2 pairs, or rotary_dim / 2.
      length: tokens of the whole sequence: some kinds of scaling depend on whether it is longer
        than the original length.
    """
    turned = position.turned(dim)
    if position.scaling is None:
        return plain(position.theta, turned)
    return SCALED[position.scaling.kind](position.scaling, position.theta, turned, length)


def attention_factor(position: RopePosition) -> float:
    """Return what cosines and sines are multiplied with: rotated queries and keys grow by it,
    scores by its square.
    """
    scaling = position.scaling
    if not isinstance(scaling, YarnScaling | LongropeScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    grown = math.log(scaling.factor)
    if isinstance(scaling, LongropeScaling):
        return math.sqrt(1 + grown / math.log(scaling.original_length))
    if scaling.mscale is not None and scaling.mscale_all_dim is not None:
        return (0.1 * scaling.mscale * grown + 1) / (0.1 * scaling.mscale_all_dim * grown + 1)
    return 0.1 * grown + 1


def plain(theta: float, dim: int) -> np.ndarray:
    """Return theta^(-2i / d), fp64 (d / 2)."""
    return theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)


def _linear(scaling: LinearScaling, theta: float, dim: int, length: int) -> np.ndarray:
    del length
    return plain(theta, dim) / scaling.factor


def _ntk(scaling: NtkScaling, theta: float, dim: int, length: int) -> np.ndarray:
    """Return frequencies of theta s^(d / (d - 2)): the first is kept, the last, theta^(-(d - 2) /
    d), is divided by s.
    """
    del length
    return plain(theta * scaling.factor ** (dim / (dim - 2)), dim)


def _dynamic(scaling: DynamicScaling, theta: float, dim: int, length: int) -> np.ndarray:
    """Return `_ntk` for s = factor L / L_original - (factor - 1), which is 1 at the original
    length.
    """
    longer = max(length, scaling.original_length) / scaling.original_length
    stretch = scaling.factor * longer - (scaling.factor - 1)
    return plain(theta * stretch ** (dim / (dim - 2)), dim)


def _yarn(scaling: YarnScaling, theta: float, dim: int, length: int) -> np.ndarray:
    """Blend f / s and f along a ramp over pairs, by arXiv:2309.00071, eq. 17 to 23.

    A pair with r turns in the original length L has r = L theta^(-2i / d) / 2 pi, so its number is
    i(r) = d ln(L / (2 pi r)) / (2 ln theta). Pairs to i(beta_fast) are kept, those from
    i(beta_slow) on are divided.
    """
    del length

    def pair(turns: float) -> float:
        return (
            dim * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))
        )

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    # The last is held to d - 1, not d / 2 - 1, in the code that models were trained with.
    first, last = max(first, 0), min(last, dim - 1)
    span = last - first or 0.001
    divided = np.clip((np.arange(dim // 2) - first) / span, 0.0, 1.0)
    kept = plain(theta, dim)
    return divided * kept / scaling.factor + (1 - divided) * kept


def _llama3(scaling: Llama3Scaling, theta: float, dim: int, length: int) -> np.ndarray:
    """Divide frequencies that make fewer turns in the original length than the low factor, keep
    those with more than the high one, blend in between.
    """
    del length
    kept = plain(theta, dim)
    turns = scaling.original_length * kept / (2 * math.pi)
    span = scaling.high_frequency_factor - scaling.low_frequency_factor
    blend = np.clip((turns - scaling.low_frequency_factor) / span, 0.0, 1.0)
    return (1 - blend) * kept / scaling.factor + blend * kept


def _longrope(scaling: LongropeScaling, theta: float, dim: int, length: int) -> np.ndarray:
    """Divide each frequency by its own factor, found by search."""
    long = length > scaling.original_length
    return plain(theta, dim) / np.asarray(scaling.long_factor if long else scaling.short_factor)


SCALED: dict[str, Callable[[Any, float, int, int], np.ndarray]] = {
    "linear": _linear,
    "ntk": _ntk,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
