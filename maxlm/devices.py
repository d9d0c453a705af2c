"""What is known of each kind of device: one table for kernels, metrics and `maxlm plan`."""

from __future__ import annotations

import re
from typing import NamedTuple

KIB, MIB, GIB = 2**10, 2**20, 2**30


class Chip(NamedTuple):
    """A generation of TPU; rates are of one JAX device, from Google's documentation where not said
    otherwise.

    Attributes:
      vector_memory: bytes of one core.
      dimensions: of the torus.
      config: libtpu's name for one JAX device per chip, or for two.
      devices: JAX devices per chip.
      clock: cycles per second.
      memory_bytes: what the compiler lets a program use, by its own message (libtpu 0.0.42).
      memory_rate: bytes per second between HBM and the core.
      link_rate: bytes per second of one link in one direction; a chip has two links per dimension.
      network_rate: bytes per second between slices, in one direction.
    """

    vector_memory: int
    dimensions: int
    config: str
    devices: int
    clock: float
    memory_bytes: int
    memory_rate: float
    link_rate: float
    network_rate: float


class Gpu(NamedTuple):
    """A generation of NVIDIA GPU.

    Attributes:
      capability: CUDA's compute capability: 8.0 and 8.6 are Ampere, 8.9 Ada, 9.0 Hopper, 10.0
        Blackwell.
      shared_memory: bytes that a block of threads can have.
      link_rate: bytes per second of all its NVLinks in one direction; None without, or if unknown.
    """

    capability: float
    shared_memory: int
    link_rate: float | None = None


class Device(NamedTuple):
    """A row of the table.

    Attributes:
      name: of a TPU generation as `maxlm plan --topology` takes it; of others for the reader.
      kind: regular expression searched in `jax.Device.device_kind`, case does not matter.
      bfloat16: dense peak of one JAX device in FLOP/s, from the vendor's data sheet, without
        sparsity; None if unknown.
      float32: likewise, of a float32 matmul in jax's default precision: one bfloat16 pass on TPU,
        TF32 on NVIDIA.
      chip: what is particular to TPUs.
      gpu: what is particular to NVIDIA GPUs.
    """

    name: str
    kind: str
    bfloat16: float | None
    float32: float | None
    chip: Chip | None = None
    gpu: Gpu | None = None


_V4 = Chip(16 * MIB, 3, "megacore", 1, 1.05e9, int(30.75 * GIB), 1.23e12, 50e9, 6.25e9)
_V5E = Chip(128 * MIB, 2, "default", 1, 1.5e9, int(15.75 * GIB), 0.82e12, 50e9, 3.1e9)
_V5P = Chip(64 * MIB, 3, "megacore", 1, 1.75e9, int(95.74 * GIB), 2.77e12, 100e9, 6.25e9)
_V6E = Chip(128 * MIB, 2, "default", 1, 1.75e9, int(31.25 * GIB), 1.64e12, 112e9, 12.5e9)
_TPU7X = Chip(64 * MIB, 3, "default", 2, 2.0e9, int(94.75 * GIB), 3.69e12, 50e9, 6.25e9)

_OLDER = Gpu(7.5, 64 * KIB)
_A100 = Gpu(8.0, 163 * KIB)
_A10, _ADA = Gpu(8.6, 99 * KIB), Gpu(8.9, 99 * KIB)
_HOPPER = Gpu(9.0, 227 * KIB)
_BLACKWELL = Gpu(10.0, 227 * KIB)
# With NVLink; the others of their generation may be PCIe cards.
_A100_SXM, _HOPPER_SXM = _A100._replace(link_rate=300e9), _HOPPER._replace(link_rate=450e9)
_BLACKWELL_SXM = _BLACKWELL._replace(link_rate=900e9)

# TPU v2, v3 and 7x show one device per core or chiplet, the others one per chip. First match wins,
# so the special kind stands before the general one.
DEVICES = (
    Device("v2", r"TPU v2", 22.5e12, 22.5e12),
    Device("v3", r"TPU v3", 61.5e12, 61.5e12),
    Device("v4", r"TPU v4", 275e12, 275e12, chip=_V4),
    Device("v5e", r"TPU v5 ?lite|TPU v5e", 197e12, 197e12, chip=_V5E),
    Device("v5p", r"TPU v5", 459e12, 459e12, chip=_V5P),
    Device("v6e", r"TPU v6", 918e12, 918e12, chip=_V6E),
    Device("tpu7x", r"TPU ?v?7", 1153.5e12, 1153.5e12, chip=_TPU7X),
    Device("A100", r"A100|A800", 312e12, 156e12, gpu=_A100_SXM),
    Device("A30", r"\bA30\b", None, None, gpu=_A100),
    Device("H100 PCIe", r"H100 PCIe", 756e12, 378e12, gpu=_HOPPER),
    Device("H100 NVL", r"H100 NVL|H200 NVL", 835e12, 417.5e12, gpu=_HOPPER),
    Device("H100", r"H100|H200|H800|GH200", 989.4e12, 494.7e12, gpu=_HOPPER_SXM),
    Device("H20", r"\bH20\b", None, None, gpu=_HOPPER),
    Device("GB200", r"GB200", 2500e12, 1250e12, gpu=_BLACKWELL_SXM),
    Device("B200", r"B200", 2250e12, 1125e12, gpu=_BLACKWELL_SXM),
    Device("B100", r"B100|B300", None, None, gpu=_BLACKWELL),
    Device("L4", r"\bL4\b", 121e12, 60e12, gpu=_ADA),
    Device("L40S", r"L40S", 362e12, 183e12, gpu=_ADA),
    Device("A10", r"\bA10\b", 125e12, 62.5e12, gpu=_A10),
    Device(
        "before Ampere", r"P100|\bP40\b|V100|\bT4|TITAN|GTX|Quadro|RTX 20", None, None, gpu=_OLDER
    ),
    Device("MI300X", r"MI300X|MI325X", 1307.4e12, 653.7e12),
)
CHIPS = {device.name: device.chip for device in DEVICES if device.chip}
"""TPUs that can be planned for."""
_UNKNOWN_NVIDIA = Gpu(8.6, 99 * KIB)
"""Of an NVIDIA GPU that is not in the table: the least that any of its time has."""


def find_device(device_kind: str) -> Device | None:
    """Return the row of a `jax.Device.device_kind`, or None."""
    return next((row for row in DEVICES if re.search(row.kind, device_kind, re.IGNORECASE)), None)


def find_gpu(device_kind: str) -> Gpu | None:
    """Return what is known of an NVIDIA GPU, or None if it is something else."""
    if "NVIDIA" not in device_kind:
        return None
    row = find_device(device_kind)
    return row.gpu if row and row.gpu else _UNKNOWN_NVIDIA


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Return the peak FLOP/s of one device, or None where no table has a meaningful one (a CPU).

    Args:
      device_kind: `jax.Device.device_kind`.
      dtype: of the multiplications, "bfloat16" or "float32".
    """
    row = find_device(device_kind)
    return {"bfloat16": row.bfloat16, "float32": row.float32}[dtype] if row else None
