"""Tensors in few bits against element by element arithmetic."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from maxlm.checkpoint.hf.tensors.quantised import as_numbers
from maxlm.checkpoint.hf.tensors.read_files import SINGLE, StoredTensor, open_tensors
from maxlm.config.errors import UserError

RNG = np.random.default_rng(0)
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [4, 6]}


def stored(folder, tensors):
    """Return tensors as they are read from a file; what safetensors' numpy cannot write is bytes."""
    plain = {name: values.view(np.uint8) for name, values in tensors.items()}
    save_file(plain, folder / SINGLE)
    return {
        name: StoredTensor(tensor.path, tensors[name].dtype, tensors[name].shape, tensor.begin)
        for name, tensor in open_tensors(folder).items()
    }


def boxes(shape):
    """Yield the whole and parts that begin and end within blocks."""
    sides = [[slice(0, size), slice(1, size - 1), slice(size - 1, size)] for size in shape]
    yield from itertools.product(*sides)


def test_fp8_with_block_scales(tmp_path):
    values = RNG.normal(size=(10, 13)).astype(ml_dtypes.float8_e4m3fn)
    scales = RNG.uniform(0.5, 2, (3, 3)).astype(np.float32)
    other = RNG.normal(size=(3,)).astype(np.float32)
    tensors = {"a.weight": values, "a.weight_scale_inv": scales, "norm.weight": other}
    read = as_numbers(stored(tmp_path, tensors), FP8, "config.json")
    assert read.keys() == {"a.weight", "norm.weight"}
    whole = np.asarray(
        [[float(values[i, j]) * scales[i // 4, j // 6] for j in range(13)] for i in range(10)],
        np.float32,
    )
    for box in boxes((10, 13)):
        found = read["a.weight"].read(box)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, whole[box])


def test_four_bit_numbers(tmp_path):
    """Of float4_e2m1fn of another library, the lower four bits first."""
    experts, rows, groups = 2, 5, 3
    packed = RNG.integers(0, 256, (experts, rows, groups, 16), dtype=np.uint8)
    exponents = RNG.integers(120, 135, (experts, rows, groups), dtype=np.uint8)
    tensors = {"m.gate_up_proj_blocks": packed, "m.gate_up_proj_scales": exponents, "n": packed[0]}
    read = as_numbers(stored(tmp_path, tensors), {"quant_method": "mxfp4"}, "config.json")
    assert read.keys() == {"m.gate_up_proj", "n"}
    tensor = read["m.gate_up_proj"]
    assert tensor.shape == (experts, groups * 32, rows)
    fours = np.stack([packed & 15, packed >> 4], -1).view(ml_dtypes.float4_e2m1fn)
    numbers = fours.astype(np.float32).reshape(experts, rows, groups, 32)
    whole = numbers * 2.0 ** (exponents.astype(np.float32) - 127)[..., None]
    whole = whole.reshape(experts, rows, -1).transpose(0, 2, 1)
    for box in boxes(tensor.shape):
        np.testing.assert_array_equal(tensor.read(box), whole[box])


@pytest.mark.parametrize(
    ("quantisation", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quant_method='gptq' cannot be read"),
        ({}, "quant_method=None cannot be read"),
        ("fp8x", "quant_method='fp8x' cannot be read"),
        ({**FP8, "fmt": "e5m2"}, "fmt=e5m2"),
        ({**FP8, "weight_block_size": None}, "weight_block_size=None"),
        ({**FP8, "weight_block_size": [128, 0]}, r"weight_block_size=\[128, 0\]"),
    ],
)
def test_other_quantisations_are_refused(quantisation, message):
    with pytest.raises(UserError, match=message):
        as_numbers({}, quantisation, "config.json")


def test_scales_that_do_not_fit_are_all_told(tmp_path):
    values = np.zeros((8, 12), ml_dtypes.float8_e4m3fn)
    tensors = {"a": values, "b": values, "b_scale_inv": np.ones((3, 2), np.float32)}
    with pytest.raises(UserError) as caught:
        as_numbers(stored(tmp_path, tensors), FP8, "config.json")
    assert "a of shape [8, 12]: no scales, not [2, 2]" in str(caught.value)
    assert "b of shape [8, 12]: scales of shape [3, 2], not [2, 2]" in str(caught.value)
