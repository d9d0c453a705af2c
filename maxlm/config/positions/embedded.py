"""Settings of positions that are added to the embeddings."""

from __future__ import annotations

from typing import Literal

from maxlm.config.section import PositiveFloat, PositiveInt, Section


class LearnedPosition(Section):
    """A learned vector per position, added to the embeddings."""

    kind: Literal["learned"] = "learned"
    max_length: PositiveInt = 1024


class SinusoidalPosition(Section):
    """Sines and cosines of the position, added to the embeddings (arXiv:1706.03762, 3.5)."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    theta: PositiveFloat = 10_000.0
