"""Settings of positions that are added to the scores of attention, by distance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.section import PositiveInt, Section


class AlibiPosition(Section):
    """Scores fall with the distance, with a slope of its own in each head (arXiv:2108.12409)."""

    kind: Literal["alibi"] = "alibi"


class RelativePosition(Section):
    """Each head learns what is added to scores at a distance, far ones in buckets
    (arXiv:1910.10683, 2.1).
    """

    kind: Literal["relative"] = "relative"
    num_buckets: Annotated[int, Field(ge=2, le=256)] = Field(
        32, description="half of them for one distance each, half for ranges that grow with it"
    )
    max_distance: PositiveInt = Field(128, description="from here on all is in the last bucket")

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield distances that leave nothing to the growing ranges."""
        exact = self.num_buckets // 2
        if self.max_distance <= exact:
            text = f"{path}.max_distance={self.max_distance} must be above the {exact} distances"
            cure = f"use {path}.max_distance={4 * self.num_buckets}"
            yield Problem(
                f"{path}.max_distance",
                f"{text} that have a bucket of their own, half of {path}.num_buckets; {cure}",
            )
