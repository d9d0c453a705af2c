"""Settings of optimizers, a file each, and of learning-rate schedules."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from maxlm.config.optim.adamw import AdamwConfig
from maxlm.config.section import kind_or

Optimizer = Annotated[
    AdamwConfig,
    Field(discriminator="kind"),
    kind_or("adamw"),
]
"""What moves the parameters."""
