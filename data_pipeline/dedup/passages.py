"""Repeated passages: runs of tokens that occur again, anywhere in the corpus (Lee et al. 2021,
arXiv:2107.06499).

A passage of at least `length` tokens occurs twice exactly if each of its windows of `length` tokens
does, so windows are what is looked for, by fingerprints of 128 bits. Most windows occur once, so
they are not written down: of each window's shorter runs, the one of the least hash (its minimizer;
Schleimer et al. 2003) stands for it, equal windows have equal ones, and a window goes on only if
its minimizer occurs twice. That leaves one number of 64 bits for every 13th token of a corpus.
A suffix array with the common prefixes finds the same in three times the time, and within one block
alone: across blocks it needs fingerprints or a merge besides.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_pipeline.dedup.words import Words, mixed

_BASES = (0x9FB21C651E98DF25, 0xD6E8FEB86659FD93)


class Windows(NamedTuple):
    """The windows of some texts: runs of `length` tokens, none across two texts.

    Attributes:
      starts: int64 (num_windows,), the token that each begins with, ascending.
      minimizers: uint64 (num_windows,).
      sample: uint64, the hash at every place that is the minimizer of a window around it.
    """

    starts: np.ndarray
    minimizers: np.ndarray
    sample: np.ndarray


def windows_of(words: Words, length: int) -> Windows:
    """Return the windows of texts whose words are the tokens."""
    tokens, offsets = words.hashes, words.offsets
    if tokens.size < length:
        nothing = np.empty(0, np.uint64)
        return Windows(np.empty(0, np.int64), nothing, nothing)
    run = (length + 1) // 2
    width = length - run + 1  # runs in a window
    runs = mixed(_run_hashes(tokens, run, _BASES[0])) | np.uint64(1)
    least = _sliding(np.minimum, runs, width)
    ends = offsets[1:].repeat(np.diff(offsets))
    whole = np.arange(least.size) + length <= ends[: least.size]
    # A run is somebody's minimizer if the greatest minimizer of the windows around it is itself;
    # windows across two texts have none.
    padded = np.zeros(runs.size + width - 1, np.uint64)
    padded[width - 1 : width - 1 + least.size] = np.where(whole, least, 0)
    sampled = _sliding(np.maximum, padded, width) == runs
    # The least of many hashes are small: mixed again, they spread over the whole key space, whose
    # equal parts then hold about equally many.
    return Windows(np.flatnonzero(whole), mixed(least[whole]), mixed(runs[sampled]))


def fingerprints(words: Words, starts: np.ndarray, length: int) -> np.ndarray:
    """Return uint64 (2, num_starts): 128 bits of the windows that begin with some tokens."""
    # The tokens of these windows alone, put together; a window's own stay neighbours.
    spans = spans_of(starts, length)
    steps = np.zeros(words.hashes.size + 1, np.int8)
    steps[spans[:, 0]] = 1
    steps[spans[:, 1]] = -1
    used = steps[:-1].cumsum(dtype=np.int8).astype(bool)
    tokens, places = words.hashes[used], used.cumsum()[starts] - 1
    return np.stack([mixed(_run_hashes(tokens, length, base)[places]) for base in _BASES])


def is_among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Say which values are among some, fast where equal values follow each other."""
    if values.size == 0 or ascending.size == 0:
        return np.zeros(values.size, bool)
    begins = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    heads = values[begins]
    place = np.searchsorted(ascending, heads).clip(max=ascending.size - 1)
    lengths = np.diff(np.append(begins, values.size))
    return (ascending[place] == heads).repeat(lengths)


def spans_of(starts: np.ndarray, length: int) -> np.ndarray:
    """Return int64 (num_spans, 2): where the tokens begin and end that windows cover.

    Args:
      starts: first tokens of windows of `length`, ascending.
    """
    if starts.size == 0:
        return np.empty((0, 2), np.int64)
    # Windows that touch are one passage, with the space between them.
    apart = np.flatnonzero(starts[1:] > starts[:-1] + length)
    firsts = starts[np.concatenate([[0], apart + 1])]
    lasts = starts[np.concatenate([apart, [starts.size - 1]])]
    return np.stack([firsts, lasts + length], axis=1)


def _run_hashes(tokens: np.ndarray, length: int, base: int) -> np.ndarray:
    """Return uint64 (num_tokens - length + 1,): the polynomial of each run of `length` tokens.

    A run of 50 is put together from runs of 2, 16 and 32, each from two of half its length.
    """
    hashes = np.zeros(max(tokens.size - length + 1, 0), np.uint64)
    block, size, done = tokens, 1, 0
    while hashes.size:
        power = np.uint64(pow(base, size, 2**64))
        if length & size:
            hashes = hashes * power + block[done : done + hashes.size]
            done += size
        if 2 * size > length:
            break
        block = block[:-size] * power + block[size:]
        size *= 2
    return hashes


def _sliding(extreme: np.ufunc, values: np.ndarray, width: int) -> np.ndarray:
    """Return the least or greatest of every `width` neighbours, one for each place they fit."""
    size = 1
    while 2 * size <= width:
        values = extreme(values[:-size], values[size:])
        size *= 2
    rest = width - size
    return extreme(values[: values.size - rest], values[rest:])
