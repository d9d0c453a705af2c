"""Rows that bands link, in files: their sets of n-grams and what decides about them, read one
cluster's share at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.dedup.near.verify import Candidates
from data_pipeline.dedup.sorted_keys import Part, slice_of_part
from data_pipeline.dedup.words import Grams, mixed
from data_pipeline.storage.arrays import read_rows

_COLUMNS = ("rows", "cluster", "score", "fixed", "bands", "set_begin", "set_end", "id")


class Sets(NamedTuple):
    """Sets of n-grams, one after the other.

    Attributes:
      grams: uint64, ascending within a set, no repeats.
      ends: int64 (num_sets,), where each set ends.
    """

    grams: np.ndarray
    ends: np.ndarray


def distinct_grams(grams: Grams) -> Sets:
    """Return each text's set of n-grams."""
    text = np.arange(grams.offsets.size - 1).repeat(np.diff(grams.offsets))
    order = np.lexsort((grams.hashes, text))
    hashes = grams.hashes[order]
    new = np.ones(hashes.size, bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (text[1:] != text[:-1])
    return Sets(hashes[new], np.concatenate([[0], new.cumsum()])[grams.offsets[1:]])


def joined(parts: Sequence[Sets]) -> Sets:
    """Return the sets of all parts."""
    sizes = np.array([part.grams.size for part in parts])
    shifts = sizes.cumsum() - sizes
    ends = [part.ends + shift for part, shift in zip(parts, shifts, strict=True)]
    return Sets(
        np.concatenate([*(part.grams for part in parts), np.empty(0, np.uint64)]),
        np.concatenate([*ends, np.empty(0, np.int64)]),
    )


def as_bytes(texts: Sequence[str]) -> np.ndarray:
    """Return texts without NUL as uint8 (num_texts, longest), filled up with zeros."""
    raw = np.array([text.encode() for text in texts], np.bytes_)
    return raw.view(np.uint8).reshape(len(texts), raw.itemsize)


def as_texts(raw: np.ndarray) -> list[str]:
    """Return what `as_bytes` was given."""
    return [row.tobytes().rstrip(b"\0").decode() for row in raw]


def candidate_arrays(candidates: Candidates, sets: Sets, ids: Sequence[str]) -> dict[str, Any]:
    """Return the arrays of a file of candidates, sorted so that a share of the clusters is one
    slice.
    """
    share = mixed(candidates.cluster)
    order = np.argsort(share, kind="stable")
    begins = np.concatenate([[0], sets.ends[:-1]]) if sets.ends.size else sets.ends
    columns = {
        "share": share,
        **{name: getattr(candidates, name) for name in _COLUMNS[:5]},
        "set_begin": begins,
        "set_end": sets.ends,
        "id": as_bytes(ids),
    }
    return {name: column[order] for name, column in columns.items()} | {"grams": sets.grams}


class CandidateFiles:
    """The candidates of some whole clusters, from all files; their sets stay on disk.

    Attributes:
      candidates: of the files' clusters in this part.
    """

    def __init__(self, paths: Sequence[Path], part: Part):
        self._paths = paths
        read = [self._columns(place, part) for place in range(len(paths))]
        columns = {
            name: np.concatenate([one[name] for one in read]) for name in ("file", *_COLUMNS[:-1])
        }
        self._file, self._begin, self._end = (
            columns.pop(name) for name in ("file", "set_begin", "set_end")
        )
        self._ids = [text for one in read for text in as_texts(one["id"])]
        self.candidates = Candidates(**columns)

    def grams(self, candidate: int) -> np.ndarray:
        """Return a candidate's set of n-grams."""
        place = int(self._file[candidate])
        begin, end = int(self._begin[candidate]), int(self._end[candidate])
        return read_rows(self._paths[place], "grams", begin, end)

    def id(self, candidate: int) -> str:
        """Return a candidate's document's id."""
        return self._ids[candidate]

    def _columns(self, place: int, part: Part) -> dict[str, np.ndarray]:
        path = self._paths[place]
        where = slice_of_part(path, "share", part)
        columns = {name: read_rows(path, name, where.start, where.stop) for name in _COLUMNS}
        return columns | {"file": np.full(where.stop - where.start, place)}
