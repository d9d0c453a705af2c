"""Settings of what a model is trained for, a file each."""

from __future__ import annotations

from maxlm.config.objectives.next_token import NextTokenConfig

Objective = NextTokenConfig
"""Every kind of objective; with a second one a union discriminated by `kind`."""
