"""Settings of the step that turns pages into text."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.step import StepSection
from maxlm.config.section import PositiveInt

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig


class ExtractConfig(StepSection):
    """HTML to text, mojibake repaired, Unicode normalised; plain text only the latter two."""

    kind: Literal["extract"] = "extract"
    input: Literal["auto", "html", "text"] = Field(
        "auto", description="auto: HTML if `content_type` says so or the text begins like a page"
    )
    extractor: Literal["resiliparse", "trafilatura"] = Field(
        "resiliparse", description="trafilatura finds tables and lists better, 15 times as slow"
    )
    main_content: bool = Field(True, description="leave out menus, footers and comments")
    max_chars: PositiveInt = Field(
        5 * 2**20, description="longer documents are dropped before they are parsed"
    )
    max_tag_chars: PositiveInt = Field(
        16 * 1024, description="pages with a longer tag are dropped: parsers are quadratic in it"
    )
    max_depth: PositiveInt = Field(
        500, description="pages with more elements open at once are dropped, likewise"
    )
    repair: bool = Field(True, description="undo wrong decodings (ftfy) in lines where they show")
    normal_form: Literal["NFC", "NFKC", "none"] = "NFC"
    max_combining_marks: Annotated[int, Field(ge=1, le=1000)] = Field(
        30, description="combining marks kept in a row (UAX 15, stream-safe text)"
    )

    @property
    def changes_text(self) -> bool:
        """Return whether texts are other ones behind it."""
        return True

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield libraries that it needs and that are not there."""
        del data
        needed = {
            "extractor": self.extractor if self.input != "text" else "",
            "repair": "ftfy" if self.repair else "",
        }
        for setting, library in needed.items():
            if library and importlib.util.find_spec(library) is None:
                text = f"{path}.{setting} needs the package {library}"
                yield Problem(f"{path}.{setting}", f"{text}; run: pip install 'maxlm[data]'")
