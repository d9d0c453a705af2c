"""How often a job that fails is started again, and after which pauses: the same for all launchers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from maxlm.config.section import NonNegativeFloat, PositiveFloat, Section

LONGEST_PAUSE_SECONDS = 900.0


class Retries(Section):
    """A job that fails is started again so often; a pause doubles with each failure in a row."""

    most: Annotated[int, Field(ge=0, le=1000)] = Field(
        5, description="failures in a row after which the job is given up"
    )
    pause_seconds: NonNegativeFloat = Field(
        30.0, description=f"the first pause; the longest is {LONGEST_PAUSE_SECONDS:g} s"
    )
    reset_after_seconds: PositiveFloat = Field(
        3600.0, description="a job that ran so long before it failed is not failing in a row"
    )

    @property
    def pauses(self) -> tuple[float, ...]:
        """Seconds before each further start; there is one for each that is allowed."""
        return tuple(
            min(self.pause_seconds * 2**failure, LONGEST_PAUSE_SECONDS)
            for failure in range(self.most)
        )

    def next_failures(self, failures: int, seconds: float) -> int:
        """Return the failures in a row, now that a job has failed after `seconds`."""
        return 1 if seconds >= self.reset_after_seconds else failures + 1
