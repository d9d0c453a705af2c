"""Count the entries of a word list in a text: words, phrases, and signs of scripts without spaces."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from data_pipeline.heuristics.text import SPACELESS_SIGN

_WORDS = re.compile(r"\w+")


class Hits(NamedTuple):
    """What was found: how many entries, the first of them, and the words of the whole text."""

    entries: int
    first: str
    words: int


class Lexicon:
    """Words and phrases, found as whole words in any case, whatever stands between a phrase's words.

    Entries without letters or digits, and those in scripts without spaces, are found anywhere.
    """

    def __init__(self, entries: Iterable[str]):
        folded = {entry.casefold() for entry in entries}
        self._signs = sorted(entry for entry in folded if entry and _stands_anywhere(entry))
        phrases = (tuple(_WORDS.findall(entry)) for entry in folded.difference(self._signs))
        # By the first word, the longest phrase first, so that none is found within another.
        self._phrases: dict[str, list[tuple[str, ...]]] = {}
        for phrase in sorted(filter(None, phrases), key=lambda phrase: (-len(phrase), phrase)):
            self._phrases.setdefault(phrase[0], []).append(phrase)

    def __len__(self) -> int:
        return len(self._signs) + sum(map(len, self._phrases.values()))

    def find(self, text: str) -> Hits:
        """Count the places of a text where an entry stands; places of phrases do not overlap."""
        text = text.casefold()
        words = _WORDS.findall(text)
        found = []
        after = 0
        for place, word in enumerate(words):
            if place < after or word not in self._phrases:
                continue
            phrase = self._phrase_at(words, place)
            if phrase:
                found.append(" ".join(phrase))
                after = place + len(phrase)
        for sign in self._signs:
            found += [sign] * text.count(sign)
        return Hits(len(found), found[0] if found else "", len(words))

    def _phrase_at(self, words: list[str], place: int) -> tuple[str, ...]:
        for phrase in self._phrases[words[place]]:
            if tuple(words[place : place + len(phrase)]) == phrase:
                return phrase
        return ()


def _stands_anywhere(entry: str) -> bool:
    return not _WORDS.search(entry) or SPACELESS_SIGN.search(entry) is not None
