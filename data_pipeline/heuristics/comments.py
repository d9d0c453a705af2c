"""How much of a source file is comments: one linear scan, so that files that no parser takes count
too.
"""

from __future__ import annotations

import re

# A string, then what is a comment; possessive, and each alternative ends at the line or the file at
# the latest.
_PYTHON = re.compile(
    r"(?P<comment>#[^\n]*+)"
    r'|(?P<long>[rbufRBUF]{0,2}(?:"""(?:[^"\\]++|\\.|"(?!""))*+(?:"""|\Z)'
    r"|'''(?:[^'\\]++|\\.|'(?!''))*+(?:'''|\Z)))"
    r"|\"(?:[^\"\\\n]++|\\.)*+\"?|'(?:[^'\\\n]++|\\.)*+'?",
    re.DOTALL,
)
_C_LIKE = re.compile(
    r"(?P<comment>//[^\n]*+|/\*(?:[^*]++|\*(?!/))*+(?:\*/|\Z))"
    r"|\"(?:[^\"\\\n]++|\\.)*+\"?|'(?:[^'\\\n]++|\\.)*+'?|`(?:[^`\\]++|\\.)*+(?:`|\Z)",
    re.DOTALL,
)
SCANNERS = {"python": _PYTHON, "java": _C_LIKE, "javascript": _C_LIKE}
"""The languages whose share of comments SantaCoder judges (arXiv:2301.03988)."""


def comment_ratio(code: str, language: str) -> float:
    """Return the characters of comments and documentation strings per character.

    Args:
      code: a source file.
      language: one of SCANNERS.
    """
    chars = 0
    for match in SCANNERS[language].finditer(code):
        if match.lastgroup == "comment" or (
            match.lastgroup == "long" and _stands_alone(code, match.start())
        ):
            chars += match.end() - match.start()
    return chars / max(len(code), 1)


def _stands_alone(code: str, start: int) -> bool:
    """Return whether a string begins its line: documentation, not a value."""
    line = code.rfind("\n", max(start - 200, 0), start) + 1
    return not code[line:start].strip()
