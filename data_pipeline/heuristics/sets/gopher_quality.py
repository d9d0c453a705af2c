"""Gopher's quality rules: is it prose (arXiv:2112.11446, A.1.1)."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.heuristics.rules import Broken, first_broken
from data_pipeline.heuristics.text import Text
from maxlm.config.pipeline.heuristics.gopher_quality import GopherQualityConfig

BULLETS = ("\u2022", "-")
ELLIPSES = ("...", "\u2026")


class GopherQuality:
    """Length, words, symbols, lists and stop words."""

    def __init__(self, config: GopherQualityConfig):
        self._config = config
        self._stop_words = frozenset(config.stop_words)

    def __call__(self, text: Text) -> Text | Broken:
        """Return the text as it is, or the rule that it breaks."""
        return first_broken(self._config, self._measure(text)) or text

    def _measure(self, text: Text) -> Iterator[tuple[str, float]]:
        words, content = text.words, text.content
        lengths = words.lengths[~words.is_symbol]
        yield "min_doc_words", lengths.size
        yield "max_doc_words", lengths.size
        average = float(lengths.mean()) if lengths.size else 0.0
        yield "min_avg_word_length", average
        yield "max_avg_word_length", average
        count = max(words.count, 1)
        yield "max_hash_word_ratio", content.count("#") / count
        yield "max_ellipsis_word_ratio", sum(map(content.count, ELLIPSES)) / count
        lines = text.lines
        bullets = sum(line.lstrip().startswith(BULLETS) for line in lines)
        yield "max_bullet_lines_ratio", bullets / len(lines)
        ellipses = sum(line.rstrip().endswith(ELLIPSES) for line in lines)
        yield "max_ellipsis_lines_ratio", ellipses / len(lines)
        yield "min_alpha_words_ratio", float(words.has_letter.sum()) / count
        yield "min_stop_words", len(self._stop_words & words.unique.keys())
