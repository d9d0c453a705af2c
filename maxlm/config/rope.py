"""Settings of rotary positions, for the layers that know them."""

from __future__ import annotations

from typing import Literal

from maxlm.config.section import PositiveFloat, PositiveInt, Section


class RopeScaling(Section):
    """Llama 3's stretching of low rotary frequencies for long contexts (arXiv:2407.21783)."""

    kind: Literal["llama3"] = "llama3"
    factor: PositiveFloat = 8.0
    low_frequency_factor: PositiveFloat = 1.0
    high_frequency_factor: PositiveFloat = 4.0
    original_length: PositiveInt = 8192


class RopePosition(Section):
    """Rotary positions (arXiv:2104.09864), half-split layout."""

    kind: Literal["rope"] = "rope"
    theta: PositiveFloat = 10_000.0
    scaling: RopeScaling | None = None
