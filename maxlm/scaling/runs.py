"""Finished runs, as laws see them: sizes, tokens and losses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEAST_VALUES = 3
"""Different sizes, and different token counts, below which no law is determined."""
LEAST_SPREAD = 1.5
"""By how much tokens per parameter must differ, the most over the least."""


class Runs(NamedTuple):
    """Finished runs that a law is fitted to, float64 arrays of one length.

    Attributes:
      parameters: N, weights of the model.
      tokens: D, training tokens.
      losses: L, in nats per token, or any unit that stays the same.
      unique_tokens: U, different tokens among D; D where nothing is repeated.
    """

    parameters: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray
    unique_tokens: np.ndarray

    @classmethod
    def of(cls, parameters: object, tokens: object, losses: object, unique: object = None) -> Runs:
        """Take anything that numpy makes arrays of; nothing is repeated by default."""
        arrays = (parameters, tokens, losses, tokens if unique is None else unique)
        return cls(*(np.asarray(one, np.float64) for one in arrays))

    def only(self, chosen: np.ndarray) -> Runs:
        """Select runs by an array of indices, or of true and false."""
        return Runs(*(one[chosen] for one in self))

    def over(self, units: Units) -> Runs:
        """Return the runs with N and D in these units."""
        sizes, tokens = self.parameters / units.parameters, self.tokens / units.tokens
        return Runs(sizes, tokens, self.losses, self.unique_tokens / units.tokens)

    @property
    def number(self) -> int:
        """How many runs there are."""
        return len(self.losses)


def unidentified(runs: Runs) -> str | None:
    """Say why a law cannot be told from runs like these, None if it can; losses are not looked at."""
    for name, values, cure in (
        ("sizes", runs.parameters, "sizes"),
        ("token counts", runs.tokens, "budgets"),
    ):
        if len(set(values)) < LEAST_VALUES:
            return f"have {len(set(values))} different {name}, and a law needs {LEAST_VALUES}; add {cure}"
    ratios = np.log(runs.tokens / runs.parameters)
    if np.ptp(ratios) < np.log(LEAST_SPREAD):
        return (
            f"have about {np.exp(ratios.mean()):.3g} tokens per parameter, so that what N does and what D does "
            "cannot be told apart; add budgets"
        )
    return None


class Units(NamedTuple):
    """What N and D are divided by."""

    parameters: float
    tokens: float

    @classmethod
    def of(cls, runs: Runs) -> Units:
        """Take the geometric means of the runs."""
        return cls(*(float(np.exp(np.log(one).mean())) for one in runs[:2]))
