"""N-gram models in ARPA's text format, which every toolkit reads and writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from data_pipeline.ngrams.model import Header, Level, NgramModel, find_all
from data_pipeline.ngrams.words import END, START, UNKNOWN, Vocabulary, WordForm
from data_pipeline.storage.whole import written_whole
from maxlm.config.errors import UserError
from maxlm.files import open_regular

_COUNT = re.compile(r"ngram (\d+)=(\d+)")


def is_arpa(path: Path | str) -> bool:
    """Tell whether a file is to be read as ARPA, by its name."""
    return str(path).endswith(".arpa")


def read_arpa(path: Path | str, form: WordForm) -> NgramModel:
    """Return the model of an ARPA file; all of it is held in memory.

    Args:
      form: how texts are cut into words, which the file does not say.

    Raises:
      UserError: it cannot be read, or a line is wrong.
    """
    try:
        with open_regular(path) as file:
            return _Reader(file, str(path)).model(form)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; give another path") from None


def check_arpa(path: Path | str) -> None:
    """Read all lines of an ARPA file and hold its words alone.

    Raises:
      UserError: it cannot be read, or a line is wrong.
    """
    try:
        with open_regular(path) as file:
            _Reader(file, str(path)).check()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; give another path") from None


def write_arpa(model: NgramModel, path: Path) -> None:
    """Write a model as ARPA; every number comes back as it was."""
    words, bits = model.vocabulary.words, model.vocabulary.bits
    with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n")
        for length, level in enumerate(model.levels, 1):
            file.write(f"ngram {length}={level.logs.size}\n")
        names = words
        for length, level in enumerate(model.levels, 1):
            if length > 1:
                mask = (1 << bits) - 1
                names = [f"{names[key >> bits]} {words[key & mask]}" for key in level.keys.tolist()]
            file.write(f"\n\\{length}-grams:\n")
            for row, name in enumerate(names):
                backoff = f"\t{level.backoffs[row]:.9g}" if level.backoffs.size else ""
                file.write(f"{level.logs[row]:.9g}\t{name}{backoff}\n")
        file.write("\n\\end\\\n")


class _Reader:
    """Reads line after line, and knows the number of the last."""

    def __init__(self, file: BinaryIO, path: str):
        self._file, self._path, self._number = file, path, 0

    def model(self, form: WordForm) -> NgramModel:
        counts = self._counts()
        vocabulary, levels = Vocabulary([]), list[Level]()
        for length, count in enumerate(counts, 1):
            rows = list(self._section(length, count, has_more=length < len(counts)))
            if length == 1:
                vocabulary, level = self._words(rows)
            else:
                level = self._level(rows, vocabulary, levels, length)
            levels.append(level)
        return NgramModel(Header(order=len(counts), form=form), vocabulary, levels)

    def check(self) -> None:
        counts = self._counts()
        for length, count in enumerate(counts, 1):
            rows = self._section(length, count, has_more=length < len(counts))
            if length == 1:
                self._words(list(rows))
            else:
                for _ in rows:
                    pass

    def _counts(self) -> list[int]:
        while (line := self._line()) != "\\data\\":
            if line is None:
                self._fail("there is no \\data\\")
        counts = list[int]()
        while match := _COUNT.fullmatch(self._line() or ""):
            if int(match[1]) != len(counts) + 1:
                self._fail("the lengths do not follow each other")
            counts.append(int(match[2]))
        if not 1 <= len(counts) <= 16:
            self._fail("\\data\\ is to name the numbers of 1-grams and of up to 16-grams")
        return counts

    def _section(
        self, length: int, count: int, *, has_more: bool
    ) -> Iterator[tuple[list[str], float, float]]:
        """Yield (words, logarithm, backoff) of the n-grams of a length."""
        while (line := self._line()) != f"\\{length}-grams:":
            if line != "":
                self._fail(f"\\{length}-grams: is to stand here")
        for _ in range(count):
            # By ASCII's white space: words of other tools may have others of Unicode's in them.
            parts = [part.decode("utf-8", "replace") for part in self._bytes().split()]
            backoff = has_more and len(parts) == length + 2
            if len(parts) != length + 1 + backoff:
                self._fail(f"a logarithm and {length} words are to stand here")
            try:
                log = float(parts[0])
                weight = float(parts[-1]) if backoff else 0.0
            except ValueError:
                self._fail("this is no number")
            if not (-1e30 < log <= 1e-5 and -1e30 < weight < 1e30):
                self._fail("this is no logarithm of a probability")
            yield parts[1 : length + 1], log, weight

    def _words(self, rows: list[tuple[list[str], float, float]]) -> tuple[Vocabulary, Level]:
        by_word = {words[0]: (log, weight) for words, log, weight in rows}
        if len(by_word) < len(rows):
            self._fail("a 1-gram is there twice")
        if "<UNK>" in by_word and UNKNOWN not in by_word:
            by_word[UNKNOWN] = by_word.pop("<UNK>")
        missing = [mark for mark in (UNKNOWN, START, END) if mark not in by_word]
        if missing:
            self._fail(f"there is no {missing[0]}: train it with an open vocabulary")
        marks = (UNKNOWN, START, END)
        words = [*marks, *(word for word in by_word if word not in marks)]
        values = np.array([by_word[word] for word in words], np.float32)
        return Vocabulary(words), Level(np.empty(0, np.uint64), values[:, 0], values[:, 1])

    def _level(
        self,
        rows: list[tuple[list[str], float, float]],
        vocabulary: Vocabulary,
        levels: list[Level],
        length: int,
    ) -> Level:
        ids = {word: number for number, word in enumerate(vocabulary.words)}
        ids.setdefault("<UNK>", 0)
        try:
            words = np.array([[ids[word] for word in row[0]] for row in rows], np.int64)
        except KeyError as error:
            raise UserError(f"{self._path}: {error} is in a {length}-gram, but no 1-gram") from None
        columns = list(words.reshape(-1, length).T)
        contexts = find_all(levels, columns[:-1], vocabulary.bits)
        if (contexts < 0).any():
            name = " ".join(rows[int(np.argmin(contexts))][0])
            cure = "write the model with all contexts, as KenLM and maxlm do"
            raise UserError(f"{self._path}: `{name}` is there without its first words; {cure}")
        keys = (contexts.astype(np.uint64) << np.uint64(vocabulary.bits)) | columns[-1].astype(
            np.uint64
        )
        order = np.argsort(keys)
        values = np.array([row[1:] for row in rows], np.float32).reshape(-1, 2)[order]
        if (keys[order][1:] == keys[order][:-1]).any():
            raise UserError(f"{self._path}: a {length}-gram is there twice; remove one of them")
        return Level(keys[order], values[:, 0], values[:, 1])

    def _line(self) -> str | None:
        line = self._bytes()
        return line.decode("utf-8", "replace").strip() if line else None

    def _bytes(self) -> bytes:
        self._number += 1
        return self._file.readline()

    def _fail(self, text: str) -> NoReturn:
        raise UserError(f"{self._path}:{self._number}: not ARPA: {text}")
