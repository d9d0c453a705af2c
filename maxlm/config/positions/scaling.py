"""Settings of how rotary frequencies are changed for contexts longer than a model was trained on.

Original lengths and lengths are in tokens. The formulas are in
`maxlm.ops.positions.frequencies`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.errors import Problem
from maxlm.config.section import PositiveFloat, PositiveInt, Section, as_tuple

Factor = Annotated[float, Field(ge=1, le=3e38)]


class LinearScaling(Section):
    """All frequencies are divided by the factor: positions are interpolated (arXiv:2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: Factor


class NtkScaling(Section):
    """Theta grows, so that the lowest frequency alone is divided by the whole factor (NTK-aware,
    arXiv:2309.00071, 3.1).
    """

    kind: Literal["ntk"] = "ntk"
    factor: Factor


class DynamicScaling(Section):
    """Theta grows with sequences longer than the original length (dynamic NTK, arXiv:2309.00071,
    3.3).
    """

    kind: Literal["dynamic"] = "dynamic"
    factor: Factor
    original_length: PositiveInt


class YarnScaling(Section):
    """Frequencies with few turns in the original length are divided by the factor, those with many
    are kept (YaRN, arXiv:2309.00071).
    """

    kind: Literal["yarn"] = "yarn"
    factor: Factor
    original_length: PositiveInt
    beta_fast: PositiveFloat = Field(32.0, description="turns from which on frequencies are kept")
    beta_slow: PositiveFloat = Field(1.0, description="turns to which frequencies are divided")
    attention_factor: PositiveFloat | None = Field(
        None,
        description="on rotated queries and keys (null: 0.1 ln(factor) + 1, or the ratio below)",
    )
    mscale: PositiveFloat | None = Field(
        None,
        description="with mscale_all_dim: the attention factor is (0.1 mscale ln(factor) + 1) / "
        "(0.1 mscale_all_dim ln(factor) + 1)",
    )
    mscale_all_dim: PositiveFloat | None = Field(None, description="see mscale")
    truncate: bool = Field(
        True, description="round the ends of the ramp between kept and divided to whole frequencies"
    )

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield a ramp that does not rise, and half a ratio."""
        if self.beta_slow > self.beta_fast:
            text = f"{path}.beta_slow={self.beta_slow} must not be greater than {path}.beta_fast={self.beta_fast}"
            yield Problem(f"{path}.beta_slow", f"{text}; use 1.0 and 32.0")
        if (self.mscale is None) != (self.mscale_all_dim is None):
            given, other = ("mscale", "mscale_all_dim")[:: 1 if self.mscale else -1]
            text = f"{path}.{given}={getattr(self, given)} means nothing without {path}.{other}"
            yield Problem(f"{path}.{given}", f"{text}; give both or neither")


class Llama3Scaling(Section):
    """Frequencies are divided by the factor, kept, or blended, by their turns in the original
    length (arXiv:2407.21783).
    """

    kind: Literal["llama3"] = "llama3"
    factor: Factor = 8.0
    low_frequency_factor: PositiveFloat = 1.0
    high_frequency_factor: PositiveFloat = 4.0
    original_length: PositiveInt = 8192

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield a blend that does not rise."""
        low, high = self.low_frequency_factor, self.high_frequency_factor
        if low >= high:
            text = f"{path}.low_frequency_factor={low} must be less than {path}.high_frequency_factor={high}"
            yield Problem(f"{path}.low_frequency_factor", f"{text}; use 1.0 and 4.0")


Factors = Annotated[tuple[PositiveFloat, ...], BeforeValidator(as_tuple)]


class LongropeScaling(Section):
    """Each frequency is divided by a factor of its own, one for sequences up to the original length
    and one for longer ones (LongRoPE, arXiv:2402.13753).
    """

    kind: Literal["longrope"] = "longrope"
    short_factor: Factors = Field(description="a divisor for each pair, to the original length")
    long_factor: Factors = Field(description="likewise, for longer sequences")
    original_length: Annotated[int, Field(ge=2, le=2**31 - 1)]
    factor: Factor = Field(description="the longest sequence over the original length")
    attention_factor: PositiveFloat | None = Field(
        None,
        description="on rotated queries and keys of all lengths (null: sqrt(1 + ln(factor) / "
        "ln(original_length)))",
    )


RopeScaling = Annotated[
    LinearScaling | NtkScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongropeScaling,
    Field(discriminator="kind"),
]
