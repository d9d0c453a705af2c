"""Finished runs, as laws see them: sizes, tokens and losses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


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


class Units(NamedTuple):
    """What N and D are divided by."""

    parameters: float
    tokens: float

    @classmethod
    def of(cls, runs: Runs) -> Units:
        """Take the geometric means of the runs."""
        return cls(*(float(np.exp(np.log(one).mean())) for one in runs[:2]))
