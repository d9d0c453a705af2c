import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxlm.config.errors import UserError
from maxlm.data.loader import DeviceLoader, device_batch


def sharding(rows, columns, spec=("batch", "sequence")):
    count = rows * columns
    return NamedSharding(
        Mesh(np.array(jax.devices()[:count]).reshape(rows, columns), ("batch", "sequence")),
        PartitionSpec(*spec),
    )


@pytest.mark.parametrize(
    "layout",
    [
        (1, 1),
        (8, 1),
        (4, 2),
        (2, 4),
        (1, 8),
        (8, 1, ()),
        (4, 2, ("batch",)),
        (4, 2, (("batch", "sequence"),)),
    ],
)
def test_any_layout_gives_the_dataset_s_batch(make_dataset, layout):
    dataset = make_dataset({"a": 1.0}, batch_size=16)
    layout = sharding(*layout)
    # Not a multiple of the batch size: another one was read before.
    with DeviceLoader(dataset, layout, start_row=90, num_batches=3, prefetch=2) as loader:
        batches = list(loader)
    assert [row for row, _ in batches] == [90, 106, 122]
    for row, batch in batches:
        expected = dataset.rows(row, row + 16)
        assert batch.keys() == expected.keys()
        for name, values in batch.items():
            assert values.sharding == layout
            np.testing.assert_array_equal(np.asarray(values), expected[name])


def test_rows_are_read_once_and_only_those_needed(make_dataset):
    dataset = make_dataset({"a": 1.0}, batch_size=16)
    reads = []

    class Recorder:
        batch_size, sequence_length = 16, 32

        def rows(self, start, stop):
            reads.append((start, stop))
            return dataset.rows(start, stop)

    device_batch(Recorder(), 2**40 + 5, sharding(4, 2))
    assert [(start - 2**40, stop - 2**40) for start, stop in reads] == [
        (5, 9),
        (9, 13),
        (13, 17),
        (17, 21),
    ]


def test_it_reads_ahead_but_not_farther(make_dataset):
    dataset = make_dataset({"a": 1.0})
    started = []

    class Recorder:
        batch_size, sequence_length = 8, 32

        def rows(self, start, stop):
            started.append(start // 8)
            return dataset.rows(start, stop)

    with DeviceLoader(
        Recorder(), sharding(1, 1), start_row=0, num_batches=100, prefetch=3
    ) as loader:
        next(loader)
        time.sleep(0.5)
        assert max(started) in range(3, 6)
    assert not [thread for thread in threading.enumerate() if thread.name == "maxlm-loader"]


class Failing:
    """A dataset that is slow, and fails at its third batch."""

    batch_size, sequence_length = 4, 8

    def rows(self, start, stop):
        time.sleep(0.05)
        if start == 8:
            raise UserError("shard 7 is damaged")
        return {"tokens": np.full((stop - start, 8), start, np.int32)}


def test_errors_surface_at_the_batch_they_concern():
    loader = DeviceLoader(Failing(), sharding(1, 1), start_row=0, num_batches=9, prefetch=4)
    assert [next(loader)[0] for _ in range(2)] == [0, 4]
    with pytest.raises(UserError, match="shard 7"):
        next(loader)
    with pytest.raises(StopIteration):
        next(loader)
    loader.close()


def test_waiting_is_measured():
    with DeviceLoader(Failing(), sharding(1, 1), start_row=0, num_batches=2, prefetch=1) as loader:
        next(loader)
        assert 0.02 < loader.wait_seconds < 10
        time.sleep(0.5)
        before = loader.wait_seconds
        next(loader)
        assert loader.wait_seconds - before < 0.05


def test_close_ends_the_thread_at_any_time():
    for read in range(3):
        loader = DeviceLoader(Failing(), sharding(1, 1), start_row=0, num_batches=10**9, prefetch=1)
        for _ in range(min(read, 2)):
            next(loader)
        loader.close()
        loader.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "maxlm-loader"]


def test_nothing_to_read():
    with DeviceLoader(Failing(), sharding(1, 1), start_row=5, num_batches=0, prefetch=1) as loader:
        assert list(loader) == []
