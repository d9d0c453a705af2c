"""Settings of optimizers, a file each, and of learning-rate schedules."""

from __future__ import annotations

from maxlm.config.optim.adamw import AdamwConfig

Optimizer = AdamwConfig
"""Every kind of optimizer; with a second one a union discriminated by `kind`."""
