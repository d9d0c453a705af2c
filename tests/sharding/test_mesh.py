"""Devices of several slices: `data` goes between them, every other axis stays within one."""

import dataclasses

import numpy as np
import pytest

from maxlm.config.errors import UserError
from maxlm.config.schema import MeshConfig
from maxlm.sharding.mesh import lay_out


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What the layout asks of a device."""

    id: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "fake"
    process_index: int = 0
    core_on_chip: int = 0

    @property
    def coords(self):
        """Place in a slice of 4 x 2 chips."""
        return (self.id % 4, self.id % 8 // 4, 0)


def fake_slices(slices, per_slice):
    return [FakeDevice(i, i // per_slice) for i in range(slices * per_slice)]


def test_only_data_crosses_slices():
    grid = lay_out(MeshConfig(data=4, fsdp=2, tensor=2), fake_slices(2, 8))
    assert grid.shape == (4, 1, 2, 1, 1, 2)
    numbers = np.vectorize(lambda device: device.slice_index)(grid)
    for row in numbers:
        assert len(set(row.ravel())) == 1
    # The slice is the slow part of `data`: neighbours within a slice come first.
    assert [row.ravel()[0] for row in numbers] == [0, 0, 1, 1]
    assert len({device.id for device in grid.ravel()}) == 16


def test_data_that_does_not_fit_the_slices_is_refused():
    with pytest.raises(UserError, match=r"mesh.data=1 must be a multiple of 2.*use mesh.data=2"):
        lay_out(MeshConfig(data=1, fsdp=16), fake_slices(2, 8))


def test_gpu_hosts_are_not_slices():
    devices = [dataclasses.replace(device, platform="gpu") for device in fake_slices(2, 8)]
    assert lay_out(MeshConfig(data=1, fsdp=16), devices).size == 16
