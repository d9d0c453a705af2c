"""Texts from anywhere, made fit to be looked at: nothing in them acts on a terminal or a page."""

from __future__ import annotations

import re

# Control characters but line end and tab; signs that turn the direction of what is around them;
# lone surrogates; line ends of Unicode.
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]"
)


def visible(text: str) -> str:
    """Return a text in which signs that act instead of being seen are written as their numbers.

    Terminals obey control characters, and both terminals and browsers show text after a sign such
    as U+202E from right to left.
    """
    return _ACTING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
