"""FineWeb's rules: lists, menus and what has lost its line ends (arXiv:2406.17557, 3.5)."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.heuristics.rules import Broken, first_broken
from data_pipeline.heuristics.text import Text, repeated
from maxlm.config.pipeline.heuristics.fineweb import FinewebConfig

# Ends of sentences in the scripts that most of the web is written in.
END_MARKS = tuple(
    ".!?\u2026\u203c\u203d\u2047\u2048\u2049\u3002\uff01\uff0e\uff1f\uff61\u061f\u06d4\u0589\u0964\u0965\u104a\u104b"
    "\u1362\u1367\u1368\u17d4\u17d5\u0700\u0701\u0702\u2e2e\u2e3c\ufe52\ufe56\ufe57"
)


class Fineweb:
    """How lines end, how long they are, how many are the same."""

    def __init__(self, config: FinewebConfig):
        self._config = config

    def __call__(self, text: Text) -> Text | Broken:
        """Return the text as it is, or the rule that it breaks."""
        return first_broken(self._config, self._measure(text)) or text

    def _measure(self, text: Text) -> Iterator[tuple[str, float]]:
        lines = text.full_lines
        if not lines:
            yield "min_line_punct_ratio", 0.0
            return
        ended = sum(line.endswith(END_MARKS) for line in lines)
        yield "min_line_punct_ratio", ended / len(lines)
        most = self._config.short_line_length
        yield "max_short_line_ratio", sum(len(line) <= most for line in lines) / len(lines)
        new_lines = text.content.count("\n")
        chars = len(text.content) - new_lines
        yield "max_char_dup_ratio", repeated(lines).chars / chars
        yield "max_new_line_ratio", new_lines / max(text.words.count, 1)
