"""C4's rules: keep lines that are sentences, drop code and placeholder text (arXiv:1910.10683, 2.2)."""

from __future__ import annotations

import re

from data_pipeline.heuristics.rules import Broken
from data_pipeline.heuristics.text import Text
from maxlm.config.pipeline.heuristics.c4 import C4Config

END_MARKS = (".", "?", "!", '"', "'", "\u201d", "\u2019")
ELLIPSIS = "..."
POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
# The end of a sentence: marks, quotes or brackets that close with it, then a space or the line's end.
_SENTENCE_END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f]+[\"'\u201d\u2019)\]]*(?=\s|\Z)")
_WORD = re.compile(r"\w")


class C4:
    """Takes out lines that are no sentences; drops what is too short then."""

    def __init__(self, config: C4Config):
        self._config = config

    def __call__(self, text: Text) -> Text | Broken:
        """Return the text of the lines that stay, or the rule that it breaks."""
        config = self._config
        kept: list[str] = []
        for line in text.lines:
            line = line.strip()
            words = line.split()
            if config.citations and "[" in line:
                line = _CITATION.sub("", line)
            if not self._is_prose(line, words):
                continue
            lower = line.lower()
            if config.lorem_ipsum and "lorem ipsum" in lower:
                return Broken("lorem_ipsum", 1)
            if config.javascript and "javascript" in lower:
                continue
            if config.curly_bracket and "{" in line:
                return Broken("curly_bracket", 1)
            if not (config.policy and any(phrase in lower for phrase in POLICY)):
                kept.append(line)
        if config.min_sentences is not None:
            sentences = sum(map(_count_sentences, kept))
            if sentences < config.min_sentences:
                return Broken("min_sentences", sentences)
        return text.replaced("\n".join(kept).strip())

    def _is_prose(self, line: str, words: list[str]) -> bool:
        config = self._config
        most = config.max_word_length
        # A line that is no longer has no longer word: most lines need no look at each.
        if most is not None and len(line) > most and max(map(len, words), default=0) > most:
            return False
        if config.terminal_punctuation and (
            not line.endswith(END_MARKS) or line.endswith(ELLIPSIS)
        ):
            return False
        return config.min_words_per_line is None or len(words) >= config.min_words_per_line


def _count_sentences(line: str) -> int:
    """Return how many sentences a line has; words that follow the last mark are one more."""
    return sum(_WORD.search(part) is not None for part in _SENTENCE_END.split(line))
