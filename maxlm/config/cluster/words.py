"""Texts that go into scripts, commands and manifests: without what would begin another line or word."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Word = Annotated[str, Field(pattern=r"^[!-~]+$", max_length=1000)]
"""Printable ASCII without spaces."""
Path = Annotated[str, Field(pattern=r"^[ -~]+$", max_length=1000)]
"""Printable ASCII; spaces may be."""
Label = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$")]
"""A name in the domain name system, short enough for what is added to it."""
Environment = dict[
    Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")],
    Annotated[str, Field(pattern=r"^[ -~]*$", max_length=10_000)],
]
"""Variables of a process."""
