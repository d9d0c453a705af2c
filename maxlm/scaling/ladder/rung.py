"""One run of a ladder: its size, its budget, and what training it costs."""

from __future__ import annotations

from typing import NamedTuple

from maxlm.config.schema import RunConfig


class Rung(NamedTuple):
    """One run of a ladder.

    Attributes:
      name: of its folder: size, budget and seed.
      size: name of its size.
      budget: its budget, in the unit of the ladder's kind.
      seed: of its initial values and its data.
      config: the run.
      parameters: N, all weights.
      embedding: of them, those of tables and the output projection.
      flops_per_token: of training.
      after: the rung whose state it starts from, None if it starts from step 0.
    """

    name: str
    size: str
    budget: float
    seed: int
    config: RunConfig
    parameters: int
    embedding: int
    flops_per_token: float
    after: Rung | None = None

    @property
    def tokens(self) -> int:
        """D, training tokens, a whole number of steps."""
        return self.config.train.num_steps * self.config.tokens_per_step

    @property
    def flops(self) -> float:
        """C, what its training spends, with the steps of others that it starts after."""
        return self.flops_per_token * self.tokens

    @property
    def start(self) -> int:
        """The step that it starts after."""
        source = self.config.train.init_from if self.after else None
        return (source.checkpoint or 0) if source else 0

    @property
    def own_flops(self) -> float:
        """What is spent on it alone."""
        steps = self.config.train.num_steps - self.start
        return self.flops_per_token * steps * self.config.tokens_per_step

    def counted(self, count: str) -> int:
        """Return N as `fit.count` has it."""
        return self.parameters - (self.embedding if count == "non_embedding" else 0)
