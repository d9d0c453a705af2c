"""Files that are written are read by the library that defines the format; a failure leaves
nothing.
"""

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from maxlm.checkpoint.hf.tensors.write_files import (
    SUMS,
    Slot,
    TensorWriter,
    whole_folder,
    write_sums,
)
from maxlm.config.errors import UserError

RNG = np.random.default_rng(0)
TENSORS = {
    name: RNG.normal(size=shape).astype(np.float32)
    for name, shape in {"a": (3, 4), "b": (50,), "c": (2, 2), "d": (1, 7)}.items()
}
SLOTS = [Slot(name, values.shape) for name, values in TENSORS.items()]


def write(folder, dtype=np.float32, shard_bytes=10**9):
    writer = TensorWriter(folder, SLOTS, np.dtype(dtype), shard_bytes=shard_bytes)
    for name, values in TENSORS.items():
        writer.write(name, values)
    writer.finish()


def test_one_file(tmp_path):
    write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    found = load_file(tmp_path / "model.safetensors")
    for name, values in TENSORS.items():
        np.testing.assert_array_equal(found[name], values)


def test_shards_of_limited_size_and_their_index(tmp_path):
    write(tmp_path, shard_bytes=70)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(v.size for v in TENSORS.values())
    for name, values in TENSORS.items():
        np.testing.assert_array_equal(load_file(tmp_path / index["weight_map"][name])[name], values)
    # b alone is larger than the limit
    assert [set(load_file(path)) for path in files] == [{"a"}, {"b"}, {"c", "d"}]


def test_values_are_rounded_to_the_nearest(tmp_path):
    write(tmp_path, ml_dtypes.bfloat16)
    found = load_file(tmp_path / "model.safetensors")
    for name, values in TENSORS.items():
        assert found[name].dtype == ml_dtypes.bfloat16
        bits = values.view(np.uint32).astype(np.uint64)
        even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        np.testing.assert_array_equal(found[name].view(np.uint16), even.astype(np.uint16))


def test_sums(tmp_path):
    write(tmp_path, shard_bytes=70)
    write_sums(tmp_path)
    lines = dict(reversed(line.split("  ")) for line in (tmp_path / SUMS).read_text().splitlines())
    assert lines.keys() == {path.name for path in tmp_path.iterdir()} - {SUMS}
    for name, digest in lines.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


def test_a_folder_is_whole_or_absent(tmp_path):
    target = tmp_path / "out"

    def fail_in_the_middle():
        with whole_folder(target) as folder:
            (folder / "part").write_text("x")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail_in_the_middle()
    assert not list(tmp_path.iterdir())
    target.mkdir()  # an empty one is as good as none
    with whole_folder(target) as folder:
        (folder / "part").write_text("x")
    assert [path.name for path in target.iterdir()] == ["part"]
    with pytest.raises(UserError, match="is there already"), whole_folder(target):
        pass


def test_a_full_disk(make_disk):
    disk = make_disk(1)

    def fill():
        with whole_folder(disk / "out") as folder:
            (folder / "large").write_bytes(bytes(2**21))

    with pytest.raises(UserError, match="No space left on device; .* or make room"):
        fill()
    assert not list(disk.iterdir())
