"""The tokenized pieces of a document shard in the order of their places, in one safetensors file,
so that a token shard takes its range of places from each file without reading the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.storage.arrays import read_rows
from maxlm.data.shards.index import smallest_dtype

BIN_BITS_OF_PLACE = 64


class Piece(NamedTuple):
    """A tokenized piece.

    Attributes:
      place: in the order of the split.
      id: of the piece.
      tokens: as they are stored, with BOS and EOS.
      masked: uint32 (S, 2), first and end token of each run that is not learned.
    """

    place: int
    id: str
    tokens: np.ndarray
    masked: np.ndarray


@dataclass(frozen=True)
class Pieces:
    """Pieces one after the other.

    Attributes:
      places: uint64 (P,), of each in the order of the split.
      lengths: uint32 (P,), tokens of each as it is stored, with BOS and EOS.
      tokens: (sum of lengths,).
      id_lengths: uint32 (P,), bytes of each id.
      ids: uint8 (sum of id_lengths,), UTF-8.
      run_counts: uint32 (P,), runs of tokens of each that are not learned.
      runs: uint32 (sum of run_counts, 2), first and end token of each, counted in its piece.
    """

    places: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray
    id_lengths: np.ndarray
    ids: np.ndarray
    run_counts: np.ndarray
    runs: np.ndarray

    @classmethod
    def of(cls, pieces: Sequence[Piece], vocab_size: int) -> Pieces:
        """Return pieces as arrays."""
        dtype = np.dtype(smallest_dtype(vocab_size))
        ids = [piece.id.encode() for piece in pieces]
        return cls(
            np.array([piece.place for piece in pieces], np.uint64),
            np.array([piece.tokens.size for piece in pieces], np.uint32),
            np.concatenate([piece.tokens for piece in pieces] + [np.empty(0, dtype)]),
            np.array([len(identity) for identity in ids], np.uint32),
            np.frombuffer(b"".join(ids), np.uint8),
            np.array([len(piece.masked) for piece in pieces], np.uint32),
            np.concatenate(
                [np.empty((0, 2), np.uint32), *(piece.masked for piece in pieces)]
            ).astype(np.uint32),
        )

    @classmethod
    def joined(cls, parts: Iterable[Pieces]) -> Pieces:
        """Return the pieces of all parts, one part after the other."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def sorted(self) -> Pieces:
        """Return them in the order of their places; of two of one place the first stays first."""
        order = np.argsort(self.places, kind="stable")
        return Pieces(
            self.places[order],
            self.lengths[order],
            _rearranged(self.tokens, self.lengths, order),
            self.id_lengths[order],
            _rearranged(self.ids, self.id_lengths, order),
            self.run_counts[order],
            _rearranged(self.runs, self.run_counts, order),
        )

    @property
    def num_masked(self) -> int:
        """How many tokens are not learned."""
        return int((self.runs[:, 1].astype(np.int64) - self.runs[:, 0]).sum())

    def masked(self) -> np.ndarray | None:
        """Return which tokens are not learned, bool (sum of lengths,); None: all are."""
        if not self.runs.size:
            return None
        begins = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        edges = self.runs + np.repeat(begins, self.run_counts)[:, None]
        size = self.tokens.size + 1
        opened = np.bincount(edges[:, 0], minlength=size) - np.bincount(edges[:, 1], minlength=size)
        return np.cumsum(opened)[:-1] > 0

    def names(self) -> list[str]:
        """Return the ids."""
        stops = np.cumsum(self.id_lengths, dtype=np.int64)
        data = self.ids.tobytes()
        starts = stops - self.id_lengths
        return [data[a:b].decode() for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]

    def arrays(self, split: str, bin_bits: int) -> dict[str, np.ndarray]:
        """Return what is stored of sorted pieces: each column, and where each of 2^bin_bits equal
        ranges of places begins: its row, token, byte of the ids and run.
        """
        bins = (
            self.places >> np.uint64(BIN_BITS_OF_PLACE - bin_bits)
            if bin_bits
            else np.zeros_like(self.places)
        )
        rows = np.searchsorted(bins, np.arange(2**bin_bits + 1, dtype=np.uint64))
        token_ends = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        id_ends = np.concatenate([[0], np.cumsum(self.id_lengths, dtype=np.int64)])
        run_ends = np.concatenate([[0], np.cumsum(self.run_counts, dtype=np.int64)])
        starts = np.stack([rows, token_ends[rows], id_ends[rows], run_ends[rows]], axis=1)
        columns = {f"{split}.{name}": column for name, column in vars(self).items()}
        return {**columns, f"{split}.starts": starts}


def bin_starts(path: Path, split: str) -> np.ndarray:
    """Return int64 (bins + 1, 4): the row, token, id byte and run at which each bin begins."""
    return read_rows(path, f"{split}.starts")


def read_bins(path: Path, split: str, first: int, stop: int) -> Pieces:
    """Return the pieces of bins [first, stop) of a file; only they are read."""
    begin = read_rows(path, f"{split}.starts", first, first + 1)[0].tolist()
    end = read_rows(path, f"{split}.starts", stop, stop + 1)[0].tolist()
    row, token, byte, run = zip(begin, end, strict=True)
    ranges = {"places": row, "lengths": row, "tokens": token, "id_lengths": row, "ids": byte}
    ranges |= {"run_counts": row, "runs": run}
    return Pieces(
        **{name: read_rows(path, f"{split}.{name}", *range_) for name, range_ in ranges.items()}
    )


def _rearranged(values: np.ndarray, lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return runs of values in another order."""
    stops = np.cumsum(lengths, dtype=np.int64)
    starts = stops - lengths
    parts = [values[starts[row] : stops[row]] for row in order.tolist()]
    return np.concatenate([*parts, values[:0]])
