"""RefinedWeb's line-wise corrections: counters, buttons and headlines of the page around a text
(arXiv:2306.01116, G.2).
"""

from __future__ import annotations

import re
import string

from data_pipeline.heuristics.rules import Broken
from data_pipeline.heuristics.text import Text
from maxlm.config.pipeline.heuristics.refinedweb import RefinedwebConfig

_COUNTER = re.compile(
    r"[\d.,]+\s?[km]?\+?\s+(?:likes?|shares?|comments?|retweets?|reposts?|quotes?|bookmarks?|upvotes?"
    r"|downvotes?|downloads?|views?|followers?|repl(?:y|ies)|votes?|points?|subscribers?)\W*",
    re.IGNORECASE,
)
_CASES = (string.ascii_uppercase.encode(), string.ascii_lowercase.encode())


class Refinedweb:
    """Takes out lines that are no text; drops documents of which they are too large a share."""

    def __init__(self, config: RefinedwebConfig):
        self._config = config
        self._edits = _edits(config)

    def __call__(self, text: Text) -> Text | Broken:
        """Return the text of the lines that stay, or the rule that it breaks."""
        kept: list[str] = []
        flagged = total = 0
        for line in text.lines:
            words = len(line.split())
            total += words
            left = self._correct(line, words)
            if left is None or left != line:
                flagged += words
            if left is not None:
                kept.append(left)
        ratio = flagged / max(total, 1)
        limit = self._config.max_flagged_word_ratio
        if limit is not None and ratio > limit:
            return Broken("max_flagged_word_ratio", ratio)
        return text.replaced("\n".join(kept).strip("\n"))

    def _correct(self, line: str, words: int) -> str | None:
        """Return what stays of a line, None for nothing; blank lines stay."""
        if not words:
            return line
        if self._is_noise(line, words):
            return None
        if self._edits and words <= self._config.short_line_words:
            left = self._edits.sub("", line)
            return left if left.strip() else None
        return line

    def _is_noise(self, line: str, words: int) -> bool:
        config = self._config
        if config.single_words and words == 1:
            return True
        if config.numeric and "".join(line.split()).isnumeric():
            return True
        if config.counters and words <= 3 and _COUNTER.fullmatch(line.strip()):
            return True
        return config.max_upper_ratio is not None and _upper_ratio(line) > config.max_upper_ratio


def _upper_ratio(line: str) -> float:
    """Return the share of capitals among the letters that have cases."""
    if line.isascii():
        data = line.encode()
        upper, lower = (len(data) - len(data.translate(None, case)) for case in _CASES)
    else:
        upper, lower = (sum(map(test, line)) for test in (str.isupper, str.islower))
    return upper / (upper + lower) if upper else 0.0


def _edits(config: RefinedwebConfig) -> re.Pattern[str] | None:
    """Return the pattern of what is cut out of short lines, None if there is nothing."""
    parts = [rf"^\s*(?:{_any_of(config.begins)})(?!\w)\W*" if config.begins else ""]
    parts += [rf"(?<!\w)(?:{_any_of(config.ends)})\W*$" if config.ends else ""]
    parts += [rf"(?:\d+\s+)?(?<!\w)(?:{_any_of(config.anywhere)})(?!\w)" if config.anywhere else ""]
    given = [part for part in parts if part]
    return re.compile("|".join(given), re.IGNORECASE) if given else None


def _any_of(phrases: tuple[str, ...]) -> str:
    longest_first = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    return "|".join(map(re.escape, longest_first))
