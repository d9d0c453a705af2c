"""Settings of rotary positions, for the layers that know them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.positions.scaling import (
    DynamicScaling,
    Llama3Scaling,
    LongropeScaling,
    NtkScaling,
    RopeScaling,
    YarnScaling,
)
from maxlm.config.section import PositiveFloat, PositiveInt, Section


class RopePosition(Section):
    """Rotary positions (arXiv:2104.09864): pairs of a query's and key's numbers are turned."""

    kind: Literal["rope"] = "rope"
    theta: PositiveFloat = 10_000.0
    rotary_dim: PositiveInt | None = Field(
        None, description="turn only so many numbers, the first of each head (null: all)"
    )
    layout: Literal["half", "interleaved"] = Field(
        "half",
        description="pairs are i and i + half of what is turned, or neighbours 2i and 2i + 1",
    )
    scaling: RopeScaling | None = Field(
        None, description="for contexts longer than the model was trained on (null: none)"
    )

    def turned(self, dim: int) -> int:
        """Return how many of `dim` numbers are turned."""
        return self.rotary_dim or dim

    def told_length(self, length: int) -> int:
        """Return a length of sequences whose tokens are turned as those of `length` are, 0 if all
        lengths are.
        """
        scaling = self.scaling
        if isinstance(scaling, DynamicScaling):
            return max(length, scaling.original_length)
        if isinstance(scaling, LongropeScaling):
            return scaling.original_length + (length > scaling.original_length)
        return 0

    def problems(self, path: str, dim_path: str, dim: int) -> Iterator[Problem]:
        """Yield what cannot be turned in pairs, and a scaling that does not fit.

        Args:
          path: of this section.
          dim_path: of the setting that says how many numbers there are.
          dim: that setting.
        """
        if self.rotary_dim is None and dim % 2:
            near = f"{dim - 1} or {dim + 1}" if dim > 1 else "2"
            text = f"{dim_path}={dim} must be even for {path}.kind=rope; use {near}"
            yield Problem(dim_path, text)
        elif self.rotary_dim and (self.rotary_dim % 2 or self.rotary_dim > dim):
            text = f"{path}.rotary_dim={self.rotary_dim} must be even and at most {dim_path}={dim}"
            even = max(min(self.rotary_dim, dim) // 2 * 2, 2)
            yield Problem(f"{path}.rotary_dim", f"{text}; use {even}")
        else:
            yield from self._scaling_problems(path, self.turned(dim))

    def _scaling_problems(self, path: str, turned: int) -> Iterator[Problem]:
        scaling, here = self.scaling, f"{path}.scaling"
        if isinstance(scaling, Llama3Scaling | YarnScaling):
            yield from scaling.problems(here)
        if isinstance(scaling, YarnScaling) and self.theta <= 1:
            text = f"{path}.theta={self.theta} must be above 1 for {here}.kind=yarn"
            yield Problem(f"{path}.theta", f"{text}; use 10000.0")
        if isinstance(scaling, NtkScaling | DynamicScaling) and turned == 2:
            text = (
                f"{here}.kind={scaling.kind} needs more than the one frequency of 2 turned numbers"
            )
            yield Problem(here, f"{text}; use linear")
        if isinstance(scaling, LongropeScaling):
            for name in ("short_factor", "long_factor"):
                count = len(getattr(scaling, name))
                if count != turned // 2:
                    text = f"{here}.{name} has {count} numbers and must have {turned // 2}"
                    yield Problem(f"{here}.{name}", f"{text}, one for each pair that is turned")
