"""Trace some steps with JAX's profiler."""

from __future__ import annotations

import logging
from pathlib import Path

import jax

from maxlm.config.schema import ProfileConfig

log = logging.getLogger(__name__)


class ProfileWindow:
    """Trace the steps of `profile` with JAX's profiler into `directory` (None: no trace)."""

    def __init__(self, profile: ProfileConfig | None, directory: Path) -> None:
        self._profile = profile
        self._directory = directory
        self._tracing = False
        self._told = False

    def update(self, step: int) -> None:
        """Start or end the trace; call before each step with the number of the step to come."""
        if self._profile is None:
            return
        first = self._profile.start_step
        if step > first and not self._tracing and not self._told:
            log.warning(
                "runtime.profile.start_step=%d was before this process began, at step %d: no trace",
                first,
                step,
            )
        self._told = True
        if step == first and not self._tracing:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True
        elif step >= first + self._profile.num_steps:
            self.close()

    def close(self) -> None:
        """End the trace, if one is running."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            log.info("profile of this process is in %s", self._directory)
