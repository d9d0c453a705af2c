"""Settings that every optimizer has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator

from maxlm.config.errors import Problem
from maxlm.config.section import NonNegativeFloat, OnResume, PositiveFloat, Section, as_tuple


class OverrideConfig(Section):
    """Other settings for parameters whose path (`stack/0/0/mixer/query`) matches a regular
    expression.

    Of several that match, the last one that says something about a setting wins.
    """

    match: str
    learning_rate_scale: NonNegativeFloat | None = None
    weight_decay: NonNegativeFloat | None = None


class OptimizerSection(Section):
    """Rate, decay and clipping; the base of every kind of optimizer."""

    kind: str
    learning_rate: Annotated[PositiveFloat, OnResume.RATE] = 3e-4
    weight_decay: NonNegativeFloat = 0.1
    no_decay: Annotated[
        tuple[Literal["matrix", "router", "head", "embedding", "norm", "bias"], ...],
        BeforeValidator(as_tuple),
    ] = ("norm", "bias", "embedding")
    clip_norm: PositiveFloat | None = 1.0
    overrides: Annotated[tuple[OverrideConfig, ...], BeforeValidator(as_tuple)] = ()

    def width_rate(self, role: str, fan_in: float, fan_out: float) -> float | None:
        """Return the factor on a parameter's update under `model.parametrisation.kind=mup`; None if
        none is known for this kind of optimizer.

        Args:
          role: what the parameter is (`maxlm.sharding.parameters.Role`).
          fan_in: how many times as many numbers a product with it sums over as at the base width.
          fan_out: how many times as many a product makes.
        """
        del role, fan_in, fan_out
        return None

    def problems(self) -> Iterator[Problem]:
        """Yield patterns that are no regular expressions."""
        for index, override in enumerate(self.overrides):
            path = f"optimizer.overrides.{index}.match"
            try:
                re.compile(override.match)
            except (re.error, OverflowError, RecursionError) as error:
                text = f"{path}={override.match!r} is not a regular expression: {error}"
                yield Problem(
                    path, f"{text}; put a backslash before a special sign that stands for itself"
                )
