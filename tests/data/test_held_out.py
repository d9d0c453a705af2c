"""Held-out text is never trained on, and no process is without rows: for any sizes."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxlm.config.checks import resolve_mesh
from maxlm.config.errors import ConfigError
from maxlm.data.windows import TrainingWindows, ValidationWindows
from tests.train.program import make_config


class Stream:
    """Tokens that say where they are: even numbers to train on, odd ones held out."""

    folder = "stream"

    def __init__(self, num_tokens, *, held_out):
        self.num_tokens, self._odd = num_tokens, int(held_out)
        self.index = type("Index", (), {"masked": 0})

    def read(self, start, count):
        assert 0 <= start <= start + count <= self.num_tokens
        return (2 * np.arange(start, start + count) + self._odd).astype(np.int32)


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_shuffled_and_repeated_rows_are_of_the_split_alone_and_all_of_it(length, shuffle):
    """Not so in grain's own slices: its shuffle and repeat reach rows outside of them (#1200)."""
    for size in (*range(length + 1, 8 * length, max(length // 2, 1)), 61):
        source = TrainingWindows(
            Stream(size, held_out=False),
            sequence_length=length,
            seed=size,
            name="a",
            shuffle=shuffle,
        )
        windows, count = source.dataset(), size // length
        for epoch in range(3):
            rows = np.stack([windows[epoch * count + row] for row in range(count)])
            assert not (rows % 2).any()
            places = rows[:, :-1] // 2
            # Each token of the epoch once, and of the split at most one short window not at all.
            assert np.unique(places).size == places.size == count * length > size - length


def test_held_out_rows_are_those_of_the_split_once():
    for size in (2, 3, 8, 9, 64, 65, 101):
        source = ValidationWindows(Stream(size, held_out=True), sequence_length=8)
        windows = source.dataset()
        rows = np.stack([windows[row] for row in range(source.num_windows)])
        targets = rows[:, 1:][rows[:, 1:] >= 0]
        assert (targets % 2 == 1).all()
        assert sorted(targets // 2) == list(range(1, size))


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_every_device_has_rows_whatever_batch_is_accepted(devices):
    """A batch that does not divide is refused; of one that is taken each device has as many."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("fsdp",))
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    for batch_size in range(1, 20):
        config = make_config(mesh={"fsdp": devices}, train={"batch_size": batch_size})
        if batch_size % devices:
            with pytest.raises(
                ConfigError, match=f"train.batch_size={batch_size} must be divisible"
            ):
                resolve_mesh(config, devices)
            continue
        assert resolve_mesh(config, devices).fsdp == devices
        places = sharding.devices_indices_map((batch_size, 4)).values()
        ranges = sorted(index[0].indices(batch_size)[:2] for index in places)
        assert [stop - start for start, stop in ranges] == [batch_size // devices] * devices
        assert ranges[0][0] == 0
        assert [stop for _, stop in ranges[:-1]] == [start for start, _ in ranges[1:]]
