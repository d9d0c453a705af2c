"""Batches on devices ahead of time: a background thread reads the rows this process' devices need.

The thread holds no state that matters: a batch is a pure function of its first row.
"""

from __future__ import annotations

import queue
import threading
import time
from types import TracebackType

import jax
import numpy as np

from maxlm.data.dataset import Dataset

Batch = dict[str, jax.Array]
Item = tuple[int, Batch]


class DeviceLoader:
    """Iterate over (first row, global batch) of `num_batches` batches on end, reading `prefetch` of
    them ahead.

    Each process reads only the rows its devices hold, each row once. What goes wrong while reading
    is raised by `next` at the batch it concerns. Close it (or leave the `with` block) to end the
    thread.

    Args:
      sharding: of the (B, T) fields.
      start_row: the first batch's first row.
    """

    def __init__(
        self,
        dataset: Dataset,
        sharding: jax.sharding.NamedSharding,
        *,
        start_row: int,
        num_batches: int,
        prefetch: int = 2,
    ):
        self._dataset, self._sharding = dataset, sharding
        size = dataset.batch_size
        self._starts = range(start_row, start_row + num_batches * size, size)
        self._next_row = start_row
        self._queue: queue.Queue[Item | BaseException] = queue.Queue(maxsize=prefetch)
        self._closed = threading.Event()
        self._wait_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="maxlm-loader", daemon=True)
        self._thread.start()

    @property
    def wait_seconds(self) -> float:
        """Seconds that `next` has waited for data, in total."""
        return self._wait_seconds

    def __iter__(self) -> DeviceLoader:
        return self

    def __next__(self) -> Item:
        if self._next_row >= self._starts.stop or self._closed.is_set():
            raise StopIteration
        began = time.perf_counter()
        item = self._queue.get()
        self._wait_seconds += time.perf_counter() - began
        if isinstance(item, BaseException):
            self.close()
            raise item
        self._next_row = item[0] + self._dataset.batch_size
        return item

    def __enter__(self) -> DeviceLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and drop what it has read ahead; may be called twice."""
        self._closed.set()
        while self._thread.is_alive():
            self._drain()
            self._thread.join(timeout=0.05)
        self._drain()

    def _drain(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()

    def _work(self) -> None:
        try:
            for row in self._starts:
                if self._closed.is_set():
                    return
                self._queue.put((row, device_batch(self._dataset, row, self._sharding)))
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, whatever it is
            self._queue.put(error)


def device_batch(dataset: Dataset, start_row: int, sharding: jax.sharding.NamedSharding) -> Batch:
    """Return the global batch that begins at `start_row`, laid out as `sharding` says.

    Each process reads only its rows.
    """
    shape = (dataset.batch_size, dataset.sequence_length)
    places = sharding.addressable_devices_indices_map(shape).values()
    row_ranges = {index[0].indices(shape[0])[:2] for index in places if index is not None}
    blocks = {
        (start, stop): dataset.rows(start_row + start, start_row + stop)
        for start, stop in sorted(row_ranges)
    }

    def field(name: str) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            return blocks[index[0].indices(shape[0])[:2]][name][:, index[1]]

        return jax.make_array_from_callback(shape, sharding, shard)

    return {name: field(name) for name in next(iter(blocks.values()))}
