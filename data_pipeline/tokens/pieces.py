"""The tokenized pieces of a document shard in the order of their places, in one safetensors file,
so that a token shard takes its range of places from each file without reading the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.storage.arrays import read_rows
from maxlm.data.shards.index import smallest_dtype

BIN_BITS_OF_PLACE = 64


@dataclass(frozen=True)
class Pieces:
    """Pieces one after the other.

    Attributes:
      places: uint64 (P,), of each in the order of the split.
      lengths: uint32 (P,), tokens of each as it is stored, with BOS and EOS.
      tokens: (sum of lengths,).
      id_lengths: uint32 (P,), bytes of each id.
      ids: uint8 (sum of id_lengths,), UTF-8.
    """

    places: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray
    id_lengths: np.ndarray
    ids: np.ndarray

    @classmethod
    def of(cls, pieces: Iterable[tuple[int, str, np.ndarray]], vocab_size: int) -> Pieces:
        """Return (place, id, tokens) of pieces as arrays."""
        rows = list(pieces)
        dtype = np.dtype(smallest_dtype(vocab_size))
        ids = [identity.encode() for _, identity, _ in rows]
        return cls(
            np.array([place for place, _, _ in rows], np.uint64),
            np.array([tokens.size for _, _, tokens in rows], np.uint32),
            np.concatenate([tokens for _, _, tokens in rows] + [np.empty(0, dtype)]),
            np.array([len(identity) for identity in ids], np.uint32),
            np.frombuffer(b"".join(ids), np.uint8),
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
        )

    def names(self) -> list[str]:
        """Return the ids."""
        stops = np.cumsum(self.id_lengths, dtype=np.int64)
        data = self.ids.tobytes()
        starts = stops - self.id_lengths
        return [data[a:b].decode() for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]

    def arrays(self, split: str, bin_bits: int) -> dict[str, np.ndarray]:
        """Return what is stored of sorted pieces: each column, and where each of 2^bin_bits equal
        ranges of places begins: its row, token and byte of the ids.
        """
        bins = (
            self.places >> np.uint64(BIN_BITS_OF_PLACE - bin_bits)
            if bin_bits
            else np.zeros_like(self.places)
        )
        rows = np.searchsorted(bins, np.arange(2**bin_bits + 1, dtype=np.uint64))
        token_ends = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        id_ends = np.concatenate([[0], np.cumsum(self.id_lengths, dtype=np.int64)])
        starts = np.stack([rows, token_ends[rows], id_ends[rows]], axis=1)
        columns = {f"{split}.{name}": column for name, column in vars(self).items()}
        return {**columns, f"{split}.starts": starts}


def bin_starts(path: Path, split: str) -> np.ndarray:
    """Return int64 (bins + 1, 3): the row, token and id byte at which each bin begins."""
    return read_rows(path, f"{split}.starts")


def read_bins(path: Path, split: str, first: int, stop: int) -> Pieces:
    """Return the pieces of bins [first, stop) of a file; only they are read."""
    begin = read_rows(path, f"{split}.starts", first, first + 1)[0].tolist()
    end = read_rows(path, f"{split}.starts", stop, stop + 1)[0].tolist()
    row, token, byte = zip(begin, end, strict=True)
    ranges = {"places": row, "lengths": row, "tokens": token, "id_lengths": row, "ids": byte}
    return Pieces(
        **{name: read_rows(path, f"{split}.{name}", *range_) for name, range_ in ranges.items()}
    )


def _rearranged(values: np.ndarray, lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return runs of values in another order."""
    stops = np.cumsum(lengths, dtype=np.int64)
    starts = stops - lengths
    parts = [values[starts[row] : stops[row]] for row in order.tolist()]
    return np.concatenate([*parts, values[:0]])
