"""Settings of how weights and sizes of sources become shares of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from maxlm.config.section import PositiveFloat, Section


class MixConfig(Section):
    """From the sources' weights and sizes to their shares of a run."""

    temperature: Annotated[float, Field(ge=1, le=1e6)] | None = Field(
        None,
        description="weights are multiplied by tokens^(1/temperature): 1 is in proportion to the sources' tokens, more "
        "is more even (arXiv:1907.05019); null: the weights alone",
    )
    max_epochs: PositiveFloat | None = Field(
        None,
        description="how often a run may read a source; what is beyond goes to the others, by their weights "
        "(arXiv:2304.09151)",
    )
