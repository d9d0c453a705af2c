"""Repair text that was decoded with the wrong encoding, such as UTF-8 that was read as Latin-1."""

from __future__ import annotations

import re

from data_pipeline.libraries import load_library

MAX_LINE_CHARS = 100_000
"""Longer lines stay as they are: they are no prose, and the repair looks at each several times."""

_ENCODINGS = ("latin-1", "cp1252", "cp1250", "cp1251", "mac_roman", "cp437")


def _pair(encoding: str) -> str:
    """Return the pattern of two bytes of UTF-8 (a lead and a continuation) read in an encoding."""
    lead, rest = (
        "".join(re.escape(sign) for sign in bytes(codes).decode(encoding, "ignore"))
        for codes in (range(0xC2, 0xF5), range(0x80, 0xC0))
    )
    return f"[{lead}][{rest}]"


# ftfy judges 3 MB/s: only lines in which such a pair stands are asked about.
_SUSPECT = re.compile("|".join(_pair(encoding) for encoding in _ENCODINGS))


class MojibakeRepair:
    """Undoes wrong decodings line by line where they show."""

    def __init__(self) -> None:
        self._fix = load_library("ftfy", extra="data", user="extract.repair").fix_encoding

    def __call__(self, text: str) -> str:
        """Return the text, repaired; a text without mojibake is returned as it is."""
        if text.isascii() or not _SUSPECT.search(text):
            return text
        return "\n".join(self._line(line) for line in text.split("\n"))

    def _line(self, line: str) -> str:
        if len(line) > MAX_LINE_CHARS or line.isascii() or not _SUSPECT.search(line):
            return line
        return str(self._fix(line))
