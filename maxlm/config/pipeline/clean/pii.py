"""Settings of the step that takes personal data out of texts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.pipeline.step import StepSection
from maxlm.config.section import Count, as_tuple

PiiType = Literal["email", "phone", "ip", "iban", "card", "national_id", "secret"]


class PiiConfig(StepSection):
    """Put placeholders in the place of personal data, and count it (`pii`)."""

    kind: Literal["pii"] = "pii"
    types: Annotated[tuple[PiiType, ...], BeforeValidator(as_tuple)] = Field(
        ("email", "phone", "ip", "iban", "card", "national_id", "secret"),
        description="public internet addresses; numbers with check digits only if these are right",
    )
    placeholder: str = Field("[{type}]", description="what stands instead; {type} as in [EMAIL]")
    max_found: Count | None = Field(
        None, description="documents with more are dropped (Dolma, arXiv:2402.00159: 5)"
    )

    @property
    def changes_text(self) -> bool:
        """Return whether texts are other ones behind it."""
        return True
