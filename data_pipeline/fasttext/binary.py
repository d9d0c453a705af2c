"""The `.bin` format of fastText: settings, dictionary, two matrices; little-endian, one after the
other. The matrices stay on disk: processes share what they read of them.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from maxlm.config.errors import UserError

MAGIC, VERSIONS = 793712314, (11, 12)
SUPERVISED = 3
LOSSES = {1: "hs", 2: "ns", 3: "softmax", 4: "ova"}
MOST_WORD_BYTES = 65_536
_ARGUMENTS = struct.Struct("<12id")
_COUNTS = struct.Struct("<3i2q")
_AFTER_WORD = struct.Struct("<qb")
_SIZES = struct.Struct("<2q")


class Contents(NamedTuple):
    """A model's file.

    Attributes:
      word_ngrams: words of the longest n-grams of words.
      loss: how it was trained, which says how probabilities come from scores.
      buckets: of hashed n-grams.
      min_characters, max_characters: of n-grams of characters; 0: there are none.
      words: by their rows in `inputs`.
      labels: in the order of `outputs`, with the prefix that they have.
      label_counts: how often each label was seen.
      inputs: float32 (words + buckets, dim).
      outputs: float32 (labels, dim); of loss hs those of the tree's inner nodes.
    """

    word_ngrams: int
    loss: str
    buckets: int
    min_characters: int
    max_characters: int
    words: dict[bytes, int]
    labels: list[bytes]
    label_counts: list[int]
    inputs: np.ndarray
    outputs: np.ndarray


class _FormatError(Exception):
    """What is wrong with a file."""


def is_fasttext(path: Path | str) -> bool:
    """Return whether a file begins as a model of fastText does."""
    try:
        with Path(path).open("rb") as file:
            return file.read(4) == struct.pack("<i", MAGIC)
    except OSError:
        return False


def read_fasttext(path: Path | str) -> Contents:
    """Read a model.

    Raises:
      UserError: it cannot be read, is damaged, quantised, or no classifier.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except (_FormatError, OSError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{path}: not a supervised model of fastText: {what}; give the .bin file of "
            "`fasttext supervised`"
        ) from None


def _read(path: Path, file: BinaryIO) -> Contents:
    magic, version = _take(file, struct.Struct("<2i"))
    if magic != MAGIC or version not in VERSIONS:
        raise _FormatError("it begins otherwise")
    # dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate, t
    dim, _, _, _, _, ngrams, loss, model, buckets, least, most, _, _ = _take(file, _ARGUMENTS)
    if model != SUPERVISED or loss not in LOSSES:
        raise _FormatError("it was trained without labels")
    if version == 11:  # its classifiers have no n-grams of characters, whatever the file says
        most = 0
    if not (dim > 0 and 1 <= ngrams <= 64 and buckets >= 0 and 0 <= most <= 64):
        raise _FormatError("it is damaged: settings out of range")
    words, labels, counts = _dictionary(file)
    inputs = _matrix(path, file, dim)
    outputs = _matrix(path, file, dim)
    uses_buckets = ngrams > 1 or most > 0
    rows = len(words) + (buckets if uses_buckets else 0)
    if len(inputs) < rows or len(outputs) != len(labels):
        raise _FormatError("it is damaged: its matrices do not fit its dictionary")
    return Contents(
        ngrams, LOSSES[loss], buckets, least, most, words, labels, counts, inputs, outputs
    )


def _dictionary(file: BinaryIO) -> tuple[dict[bytes, int], list[bytes], list[int]]:
    size, num_words, num_labels, _, pruned = _take(file, _COUNTS)
    if min(size, num_words, num_labels) < 0 or size != num_words + num_labels or not num_labels:
        raise _FormatError("it is damaged: its dictionary contradicts itself")
    if pruned >= 0:
        raise _FormatError("it is quantised (.ftz)")
    words: dict[bytes, int] = {}
    labels, counts = [], []
    for number in range(size):
        word = _word(file)
        count, kind = _take(file, _AFTER_WORD)
        if kind != (number >= num_words):  # words come first
            raise _FormatError("it is damaged: its dictionary is in disorder")
        if kind:
            labels.append(word)
            counts.append(count)
        else:
            words[word] = number
    return words, labels, counts


def _matrix(path: Path, file: BinaryIO, dim: int) -> np.ndarray:
    (quantised,) = _take(file, struct.Struct("<?"))
    if quantised:
        raise _FormatError("it is quantised (.ftz)")
    rows, columns = _take(file, _SIZES)
    start, size = file.tell(), 4 * rows * columns
    if columns != dim or rows < 0 or start + size > path.stat().st_size:
        raise _FormatError("it is damaged or cut off: a matrix does not fit")
    file.seek(size, 1)
    if not rows:
        return np.zeros((0, dim), np.float32)
    return np.memmap(path, "<f4", "r", start, (rows, columns))


def _word(file: BinaryIO) -> bytes:
    """Return the bytes up to the next zero."""
    start, found = file.tell(), b""
    while len(found) < MOST_WORD_BYTES:
        more = file.read(64)
        place = more.find(b"\0")
        found += more if place < 0 else more[:place]
        if place >= 0:
            file.seek(start + len(found) + 1)
            return found
        if not more:
            break
    raise _FormatError("it is damaged or cut off: a word has no end")


def _take(file: BinaryIO, form: struct.Struct) -> tuple[int, ...]:
    data = file.read(form.size)
    if len(data) != form.size:
        raise _FormatError("it is cut off")
    return form.unpack(data)
