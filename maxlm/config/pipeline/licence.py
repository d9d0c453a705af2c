"""Settings of the step that keeps documents under certain licences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.pipeline.step import StepSection
from maxlm.config.section import as_tuple

PERMISSIVE = (
    "0BSD",
    "AFL-3.0",
    "Apache-2.0",
    "Artistic-2.0",
    "BlueOak-1.0.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-2-Clause-Patent",
    "BSD-3-Clause",
    "BSD-3-Clause-Clear",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "NCSA",
    "PostgreSQL",
    "PSF-2.0",
    "Python-2.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "UPL-1.0",
    "W3C",
    "WTFPL",
    "X11",
    "Zlib",
)
"""Licences that ask for no more than to be named, by their SPDX identifiers."""


class LicenceConfig(StepSection):
    """Keep documents under licences of a list, and say which each is under (`licence`).

    A document's licence is that of its `SPDX-License-Identifier` line, else of `licence` or
    `license` in its `meta`, else of its source's `raw.licence`.
    """

    kind: Literal["licence"] = "licence"
    allowed: Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(min_length=1)] = Field(
        PERMISSIVE, description="SPDX identifiers, in any case; the default is permissive"
    )
    missing: Literal["drop", "keep"] = Field("drop", description="documents that name no licence")
