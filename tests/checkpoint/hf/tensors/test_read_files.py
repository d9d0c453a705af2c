"""Reading safetensors: the values of the library that defines the format, and every damage told."""

import json
import random

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from maxlm.checkpoint.hf.tensors.read_files import INDEX, SINGLE, open_tensors, read_json
from maxlm.config.errors import UserError

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.normal(size=(6, 5, 4)).astype(np.float32),
    "b.weight": RNG.normal(size=(3, 4)).astype(ml_dtypes.bfloat16),
    "c": RNG.normal(size=(7,)).astype(np.float16),
    "number": np.asarray(3.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def folder(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE)
    return tmp_path


def write(path, header, values=b""):
    """Write a file of a given header, which may be anything."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)


def test_values_are_those_that_were_saved(folder):
    tensors = open_tensors(folder)
    assert tensors.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        whole = [slice(0, size) for size in values.shape]
        read = tensors[name].read(whole)
        assert (read.dtype, read.shape) == (values.dtype, values.shape)
        assert read.tobytes() == values.tobytes()


def test_boxes_of_a_tensor(folder, monkeypatch):
    monkeypatch.setattr(
        "maxlm.checkpoint.hf.tensors.read_files._BLOCK_BYTES", 200
    )  # two rows and a half
    tensor, values = open_tensors(folder)["a.weight"], TENSORS["a.weight"]
    for box in ((slice(1, 6), slice(0, 5), slice(0, 4)), (slice(0, 6), slice(2, 3), slice(1, 4))):
        np.testing.assert_array_equal(tensor.read(box), values[box])


def test_shards_are_found_by_the_index(tmp_path):
    first, second = {"a": TENSORS["a.weight"]}, {"b": TENSORS["c"]}
    save_file(first, tmp_path / "x-1.safetensors")
    save_file(second, tmp_path / "x-2.safetensors")
    weight_map = {"a": "x-1.safetensors", "b": "x-2.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert open_tensors(tmp_path).keys() == {"a", "b"}


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "x.bin", 3, "a/b.safetensors"])
def test_an_index_leads_nowhere_else(tmp_path, name):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="is no name of a safetensors file"):
        open_tensors(tmp_path)


def test_all_files_that_are_wrong_are_told(tmp_path):
    weight_map = {"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-3.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    save_file({"other": TENSORS["c"]}, tmp_path / "x-1.safetensors")
    (tmp_path / "x-2.safetensors").write_bytes(b"short")
    with pytest.raises(UserError) as caught:
        open_tensors(tmp_path)
    text = str(caught.value)
    assert f"x-1.safetensors: {INDEX} says it has a, and it has not" in text
    assert "x-2.safetensors: its header" in text
    assert "x-3.safetensors: cannot be read: No such file" in text


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[1", "no valid JSON"),
        (b"\xff\xfe", "no valid JSON"),
        ([], "no JSON object"),
        (b"[" * 100_000, "no valid JSON"),
        (b'{"a": 1, "a": 2}', "a is there twice"),
        (entry(dtype="F31"), "not a tensor of dtype"),
        (entry(shape=[-2]), "no number"),
        (entry(shape=[2.0]), "no number"),
        (entry(shape=[True]), "no number"),
        (entry(shape=[3]), "has 8 bytes, not those of"),
        (entry(shape=[10**30]), "no number"),
        (entry(data_offsets=[0]), "not a tensor"),
        (entry(data_offsets=[4, 12]), "its tensors end at byte"),
        (entry(data_offsets=[-8, 0]), "no number"),
        ({**entry(), "b": entry()["a"]}, "does not begin where the tensor before it ends"),
        ({"a": 7}, "not a tensor"),
    ],
)
def test_damaged_headers(tmp_path, header, message):
    write(tmp_path / SINGLE, header, bytes(8))
    with pytest.raises(UserError, match="fetch these files again") as caught:
        open_tensors(tmp_path)
    assert message in str(caught.value)


def test_a_header_longer_than_the_file(tmp_path):
    (tmp_path / SINGLE).write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="more than the file has"):
        open_tensors(tmp_path)


def test_any_damage_is_told_or_harmless(folder):
    """No flipped, missing or added byte ends in anything but a UserError or whole tensors."""
    path = folder / SINGLE
    good, rng = path.read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(600)] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            tensors = open_tensors(folder)
        except UserError:
            continue
        for tensor in tensors.values():
            tensor.read([slice(0, size) for size in tensor.shape])


def test_a_file_that_is_cut_while_it_is_read(folder):
    tensor = open_tensors(folder)["a.weight"]
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[: tensor.begin + 8])
    with pytest.raises(UserError, match="has become shorter"):
        tensor.read([slice(0, size) for size in tensor.shape])


def test_pickles_are_refused_with_the_way_out(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(UserError, match="pickle, which can run any code") as caught:
        open_tensors(tmp_path)
    assert "save_pretrained" in str(caught.value)


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="has neither"):
        open_tensors(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        open_tensors(tmp_path / "none")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="must be a JSON object"):
        read_json(tmp_path / "config.json")
