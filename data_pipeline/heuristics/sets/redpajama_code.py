"""RedPajama's rules for code, which Dolma takes over: data and minified files go."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_pipeline.heuristics.rules import Broken, first_broken
from data_pipeline.heuristics.text import Text
from maxlm.config.pipeline.heuristics.redpajama_code import RedpajamaCodeConfig

_TOKEN = re.compile(r"\w+|[^\w\s]+")
_ALNUM = re.compile(r"[^\W_]+")
_ALPHA = re.compile(r"[^\W\d_]+")


class RedpajamaCode:
    """Lengths of lines, and letters."""

    def __init__(self, config: RedpajamaCodeConfig):
        self._config = config

    def __call__(self, text: Text) -> Text | Broken:
        """Return the text as it is, or the rule that it breaks."""
        return first_broken(self._config, self._measure(text)) or text

    def _measure(self, text: Text) -> Iterator[tuple[str, float]]:
        lengths = list(map(len, text.lines))
        yield "max_line_length", max(lengths)
        yield "max_avg_line_length", sum(lengths) / len(lengths)
        chars = max(len(text.content), 1)
        yield "min_alnum_ratio", sum(map(len, _ALNUM.findall(text.content))) / chars
        letters = sum(map(len, _ALPHA.findall(text.content)))
        yield "min_alpha_token_ratio", letters / max(len(_TOKEN.findall(text.content)), 1)
