"""Gopher's repetition rules: does it say the same again and again (arXiv:2112.11446, table A1)."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.heuristics.repetition import repeated_ngrams
from data_pipeline.heuristics.rules import Broken, first_broken
from data_pipeline.heuristics.text import Text, repeated
from maxlm.config.pipeline.heuristics.gopher_repetition import GopherRepetitionConfig

TOP_NGRAMS = (2, 3, 4)
MOST_WORDS = 10


class GopherRepetition:
    """Repeated paragraphs, lines and n-grams, as shares of the text's characters."""

    def __init__(self, config: GopherRepetitionConfig):
        self._config = config

    def __call__(self, text: Text) -> Text | Broken:
        """Return the text as it is, or the rule that it breaks."""
        return first_broken(self._config, self._measure(text)) or text

    def _measure(self, text: Text) -> Iterator[tuple[str, float]]:
        chars = max(len(text.content), 1)
        paragraphs = repeated(text.paragraphs)
        yield "max_dup_para_frac", paragraphs.parts / len(text.paragraphs)
        yield "max_dup_para_char_frac", paragraphs.chars / chars
        yield "max_dup_line_frac", text.repeated_lines.parts / text.num_runs_of_lines
        yield "max_dup_line_char_frac", text.repeated_lines.chars / chars
        for ngrams in repeated_ngrams(text.words, MOST_WORDS):
            if ngrams.length in TOP_NGRAMS:
                name, found = "top", ngrams.top_chars(text.words)
            else:
                name, found = "dup", ngrams.duplicate_chars(text.words)
            yield f"max_{name}_{ngrams.length}_gram_char_frac", found / chars
