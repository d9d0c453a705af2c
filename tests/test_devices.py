"""The table of devices, looked up by the names that JAX gives them."""

import pytest

from maxlm.devices import CHIPS, KIB, MIB, find_device, find_gpu, peak_flops


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [
        ("TPU v4", 275e12, 275e12),
        ("TPU v5 lite", 197e12, 197e12),
        ("TPU v5e", 197e12, 197e12),
        ("TPU v5", 459e12, 459e12),
        ("TPU v5p", 459e12, 459e12),
        ("TPU v6 lite", 918e12, 918e12),
        ("TPU7x", 1153.5e12, 1153.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA H200", 989.4e12, 494.7e12),
        ("NVIDIA B200", 2250e12, 1125e12),
        ("NVIDIA GB200", 2500e12, 1250e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("NVIDIA A10", 125e12, 62.5e12),
    ],
)
def test_peak_flops(kind, bfloat16, float32):
    assert peak_flops(kind, "bfloat16") == bfloat16
    assert peak_flops(kind, "float32") == float32


@pytest.mark.parametrize(
    "kind", ["cpu", "NVIDIA L40", "NVIDIA A10G", "NVIDIA H20", "Some New Thing"]
)
def test_unknown_devices_have_no_peak(kind):
    assert peak_flops(kind, "bfloat16") is None


@pytest.mark.parametrize(
    ("kind", "name", "vector_memory"),
    [
        ("TPU v4", "v4", 16 * MIB),
        ("TPU v5 lite", "v5e", 128 * MIB),
        ("TPU v5", "v5p", 64 * MIB),
        ("TPU v6 lite", "v6e", 128 * MIB),
        ("TPU7x", "tpu7x", 64 * MIB),
    ],
)
def test_tpus(kind, name, vector_memory):
    row = find_device(kind)
    assert (row.name, row.chip, row.chip.vector_memory) == (name, CHIPS[name], vector_memory)


@pytest.mark.parametrize(
    ("kind", "capability", "shared_memory"),
    [
        ("NVIDIA A100-SXM4-80GB", 8.0, 163 * KIB),
        ("NVIDIA A30", 8.0, 163 * KIB),
        ("NVIDIA A10G", 8.6, 99 * KIB),
        ("NVIDIA L40S", 8.9, 99 * KIB),
        ("NVIDIA H20", 9.0, 227 * KIB),
        ("NVIDIA GH200 480GB", 9.0, 227 * KIB),
        ("NVIDIA B300", 10.0, 227 * KIB),
        ("NVIDIA GeForce RTX 4090", 8.6, 99 * KIB),
        ("Tesla V100-SXM2-16GB", None, None),
        ("NVIDIA GeForce RTX 2080 Ti", 7.5, 64 * KIB),
        ("NVIDIA GeForce GTX 1080", 7.5, 64 * KIB),
        ("AMD Instinct MI300X", None, None),
        ("cpu", None, None),
    ],
)
def test_gpus(kind, capability, shared_memory):
    gpu = find_gpu(kind)
    assert (gpu and gpu.capability, gpu and gpu.shared_memory) == (capability, shared_memory)
