"""Unicode as it should be: no lone surrogates, no control characters, one normal form, and runs of
combining marks that end.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache
from typing import Literal

import numpy as np

from maxlm.data.tokenizers import replace_surrogates

Form = Literal["NFC", "NFKC"]

MAX_MARKS = 30
"""Of the Stream-Safe Text Format (UAX 15, section 13); no language writes as many."""

MARKS_END = 0x20000
"""No plane of Unicode beyond the first two has combining marks."""

# All but tab and line feed; the C1 controls, the byte order mark, and U+FFFE and U+FFFF, which are
# no characters.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")


def clean(text: str, *, form: Form | None = "NFC", max_marks: int = MAX_MARKS) -> str:
    """Return the text as valid UTF-8 can hold it, with line ends `\\n`.

    Args:
      text: any string, lone surrogates included.
      form: the normal form (UAX 15), None to keep what is there.
      max_marks: combining marks kept in a row. Normalising is quadratic in such a run.
    """
    text = _LINE_ENDS.sub("\n", replace_surrogates(text))
    text = _CONTROL.sub("", text)
    if text.isascii():
        return text
    text = cut_marks(text, max_marks)
    return text if form is None else unicodedata.normalize(form, text)


def cut_marks(text: str, most: int) -> str:
    """Return the text with at most this many combining marks in a row; linear in its length."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    is_mark = _combining()[codes]
    if int(np.count_nonzero(is_mark)) <= most:
        return text
    # A mark's place in its run: its position less that of the last character that is none.
    positions = np.arange(codes.size)
    last_other = np.maximum.accumulate(np.where(is_mark, -1, positions))
    kept = positions - last_other <= most
    return text if kept.all() else codes[kept].tobytes().decode("utf-32-le")


@cache
def _combining() -> np.ndarray:
    """Return for each code point whether it moves when text is normalised, bool (1114112,)."""
    table = np.zeros(sys.maxunicode + 1, bool)
    table[:MARKS_END] = [unicodedata.combining(chr(code)) for code in range(MARKS_END)]
    return table
