"""One source as an index-addressed, endless sequence of windows: T tokens, and as many after them
as an objective asks.

Epoch e of a source with N tokens has N // T windows. Their union is the stream once, cut from a
place that depends on e, and their order is a permutation that depends on e. The stream is a ring:
after its last token comes its first.
"""

from __future__ import annotations

import hashlib
import importlib
from typing import TYPE_CHECKING

import numpy as np

from maxlm.config.errors import UserError
from maxlm.data.examples.packing import NO_TOKEN, mark_masked
from maxlm.data.shards import TokenShards

if TYPE_CHECKING:
    import grain

MAX_WINDOWS = 2**32 - 1  # grain's index shuffle works on 32-bit indices


class TrainingWindows:
    """Windows of a training stream, shuffled anew in each epoch; `dataset[i]` for any i >= 0."""

    def __init__(
        self,
        shards: TokenShards,
        *,
        sequence_length: int,
        seed: int,
        name: str,
        shuffle: bool,
        tokens_after: int = 1,
    ):
        self._shards, self._length, self._size = (
            shards,
            sequence_length,
            sequence_length + tokens_after,
        )
        self._key, self._shuffle = f"{seed}/{name}", shuffle
        self.num_windows = shards.num_tokens // sequence_length
        if shards.num_tokens < self._size:
            raise UserError(
                f"{shards.folder}: {shards.num_tokens} tokens are too few for data.sequence_length="
                f"{sequence_length}; add text, or use a shorter sequence"
            )
        if self.num_windows > MAX_WINDOWS:
            raise UserError(
                f"{shards.folder}: more than {MAX_WINDOWS} sequences; split it into several data.sources"
            )

    def dataset(self) -> grain.MapDataset:
        """Return the grain dataset of windows, int32 (T + tokens_after,), of which tokens that are not
        learned are marked (`mark_masked`).
        """
        return self._places().map_with_index(self._read)

    def starts(self) -> grain.MapDataset:
        """Return the grain dataset of the windows' first tokens, by their place in the stream."""
        return self._places().map_with_index(self._start)

    def _places(self) -> grain.MapDataset:
        places = _numbers(self.num_windows)
        if self._shuffle:
            places = places.shuffle(seed=_number(self._key, 2**32))
        return places.repeat()

    def _start(self, index: int, place: int) -> int:
        epoch, size = index // self.num_windows, self._shards.num_tokens
        offset = _number(f"{self._key}/{epoch}", size) if self._shuffle else 0
        return int((offset + place * self._length) % size)

    def _read(self, index: int, place: int) -> np.ndarray:
        start, size = self._start(index, place), self._shards.num_tokens
        count = min(self._size, size - start)
        window = _marked(self._shards, start, count)
        if count < self._size:
            window = np.concatenate([window, _marked(self._shards, 0, self._size - count)])
        return window


class ValidationWindows:
    """Windows of a validation stream in their order, each token a target once; the last one may end
    in `NO_TOKEN`.
    """

    def __init__(self, shards: TokenShards, *, sequence_length: int, tokens_after: int = 1):
        self._shards, self._length, self._size = (
            shards,
            sequence_length,
            sequence_length + tokens_after,
        )
        self.num_windows = -(-max(shards.num_tokens - 1, 0) // sequence_length)

    def dataset(self) -> grain.MapDataset:
        """Return the grain dataset of windows, int32 (T + tokens_after,)."""
        return _numbers(self.num_windows).map(self._read)

    def starts(self) -> grain.MapDataset:
        """Return the grain dataset of the windows' first tokens, by their place in the stream."""
        return _numbers(self.num_windows).map(lambda place: place * self._length)

    def _read(self, place: int) -> np.ndarray:
        start = place * self._length
        count = min(self._size, self._shards.num_tokens - start)
        window = np.full(self._size, NO_TOKEN, np.int32)
        window[:count] = _marked(self._shards, start, count)
        return window


def _marked(shards: TokenShards, start: int, count: int) -> np.ndarray:
    """Return tokens of which those that are not learned are marked."""
    tokens = shards.read(start, count)
    if not shards.index.masked:
        return tokens
    return mark_masked(tokens, shards.read_masked(start, count))


def _number(key: str, below: int) -> int:
    """Return a number in [0, below) that is a hash of the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big") % below


def _numbers(count: int) -> grain.MapDataset:
    """Return the grain dataset of 0 to count - 1.

    grain is loaded here, with jax, which takes longer than to say how much a run will read.
    """
    return importlib.import_module("grain").MapDataset.range(count)
