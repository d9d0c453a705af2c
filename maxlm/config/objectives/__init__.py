"""Settings of what a model is trained for, a file each."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from maxlm.config.objectives.next_token import NextTokenConfig
from maxlm.config.section import kind_or

Objective = Annotated[
    NextTokenConfig,
    Field(discriminator="kind"),
    kind_or("next_token"),
]
"""What a model is trained for."""
