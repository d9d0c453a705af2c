"""Settings of the step that judges a document by its language."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.step import StepSection
from maxlm.config.section import Count, Fraction, PositiveInt

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig

LanguageCode = Annotated[str, Field(pattern="^[a-z]{2,3}$")]

_CODES = (
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et "
    "eu ext fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy "
    "id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn "
    "mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn "
    "so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh "
    "zu zxx"
)
LANGUAGES = frozenset(_CODES.split())
"""What the model of py3langid 0.4 tells apart; zxx is text in no language."""


def _without_thresholds(value: Any) -> Any:
    """Take a list of languages as those with the common threshold."""
    return dict.fromkeys(value) if isinstance(value, list) else value


class LanguageConfig(StepSection):
    """Keep documents in certain languages, and say of each which it is in (`language`,
    `language_score`).
    """

    kind: Literal["language"] = "language"
    languages: Annotated[
        dict[LanguageCode, Fraction | None], BeforeValidator(_without_thresholds)
    ] = Field(
        {},
        description="ISO 639 codes to keep, as a list or with a threshold each (empty: any language)",
    )
    threshold: Fraction = Field(
        0.65, description="probability that a document needs, as in FineWeb (arXiv:2406.17557)"
    )
    sample_chars: PositiveInt = Field(
        3000, description="of a longer document, its begin, middle and end are looked at"
    )
    lines: Literal["keep", "drop"] = Field(
        "keep", description="drop: leave out lines that are in other languages"
    )
    min_line_chars: Count = Field(40, description="shorter lines are kept, as too short to judge")

    @property
    def changes_text(self) -> bool:
        """Return whether texts are other ones behind it."""
        return self.lines == "drop"

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield what keeps it from running."""
        del data
        for name in self.languages:
            if name not in LANGUAGES:
                where = f"{path}.languages"
                text = f"{where}: {name}: the model does not know this language; use some of"
                yield Problem(where, f"{text} {', '.join(sorted(LANGUAGES))}")
        if self.lines == "drop" and not self.languages:
            text = f"{path}.lines=drop needs {path}.languages, the languages of lines to keep"
            yield Problem(f"{path}.lines", f"{text}; name them, or use lines: keep")
        if importlib.util.find_spec("py3langid") is None:
            text = f"{path} needs the package py3langid"
            yield Problem(path, f"{text}; run: pip install 'maxlm[data]'")
