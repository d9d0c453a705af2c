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
        Mesh(np.array(jax.devices()[:count]).reshape(rows, columns), ("batch", "sequence")), PartitionSpec(*spec)
    )


@pytest.mark.parametrize(
    "layout", [(1, 1), (8, 1), (4, 2), (2, 4), (1, 8), (8, 1, ()), (4, 2, ("batch",)), (4, 2, (("batch", "sequence"),))]
)
def test_any_layout_gives_the_dataset_s_batch(make_dataset, layout):
    dataset = make_dataset({"a": 1.0}, batch_size=16)
    layout = sharding(*layout)
    with DeviceLoader(dataset, layout, start_step=5, stop_step=8, prefetch=2) as loader:
        batches = list(loader)
    assert [step for step, _ in batches] == [5, 6, 7]
    for step, batch in batches:
        expected = dataset.rows(step, 0, 16)
        assert batch.keys() == expected.keys()
        for name, values in batch.items():
            assert values.sharding == layout
            np.testing.assert_array_equal(np.asarray(values), expected[name])


def test_rows_are_read_once_and_only_those_needed(make_dataset):
    dataset = make_dataset({"a": 1.0}, batch_size=16)
    reads = []

    class Recorder:
        batch_size, sequence_length = 16, 32

        def rows(self, step, start, stop):
            reads.append((start, stop))
            return dataset.rows(step, start, stop)

    device_batch(Recorder(), 0, sharding(4, 2))
    assert reads == [(0, 4), (4, 8), (8, 12), (12, 16)]


def test_it_reads_ahead_but_not_farther(make_dataset):
    dataset = make_dataset({"a": 1.0})
    started = []

    class Recorder:
        batch_size, sequence_length = 8, 32

        def rows(self, step, start, stop):
            started.append(step)
            return dataset.rows(step, start, stop)

    with DeviceLoader(Recorder(), sharding(1, 1), start_step=0, stop_step=100, prefetch=3) as loader:
        next(loader)
        time.sleep(0.5)
        assert max(started) in range(3, 6)
    assert not [thread for thread in threading.enumerate() if thread.name == "maxlm-loader"]


class Failing:
    """A dataset that is slow, and fails at step 2."""

    batch_size, sequence_length = 4, 8

    def rows(self, step, start, stop):
        time.sleep(0.05)
        if step == 2:
            raise UserError("shard 7 is damaged")
        return {"tokens": np.full((stop - start, 8), step, np.int32)}


def test_errors_surface_at_the_step_they_concern():
    loader = DeviceLoader(Failing(), sharding(1, 1), start_step=0, stop_step=9, prefetch=4)
    assert [next(loader)[0] for _ in range(2)] == [0, 1]
    with pytest.raises(UserError, match="shard 7"):
        next(loader)
    with pytest.raises(StopIteration):
        next(loader)
    loader.close()


def test_waiting_is_measured():
    with DeviceLoader(Failing(), sharding(1, 1), start_step=0, stop_step=2, prefetch=1) as loader:
        next(loader)
        assert 0.02 < loader.wait_seconds < 10
        time.sleep(0.5)
        before = loader.wait_seconds
        next(loader)
        assert loader.wait_seconds - before < 0.05


def test_close_ends_the_thread_at_any_time():
    for read in range(3):
        loader = DeviceLoader(Failing(), sharding(1, 1), start_step=0, stop_step=10**9, prefetch=1)
        for _ in range(min(read, 2)):
            next(loader)
        loader.close()
        loader.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "maxlm-loader"]


def test_nothing_to_read():
    with DeviceLoader(Failing(), sharding(1, 1), start_step=5, stop_step=5, prefetch=1) as loader:
        assert list(loader) == []
