"""How fast a run is: tokens per second, TFLOP/s, and the share of the hardware's peak (MFU)."""

from __future__ import annotations

import re
import time
from typing import NamedTuple


class Peak(NamedTuple):
    """Dense peak of one JAX device in FLOP/s."""

    kind: str  # regular expression searched in jax.Device.device_kind, case does not matter
    bfloat16: float
    float32: float


# Vendors' data sheets, without sparsity. float32 is what a float32 matmul runs at in jax's default precision: one
# bfloat16 pass on TPU, TF32 on NVIDIA. TPU v2, v3 and 7x show one device per core or chiplet, the others one per chip.
# First match wins, so the special kind stands before the general one.
PEAKS = (
    Peak(r"TPU v2", 22.5e12, 22.5e12),
    Peak(r"TPU v3", 61.5e12, 61.5e12),
    Peak(r"TPU v4", 275e12, 275e12),
    Peak(r"TPU v5 ?lite|TPU v5e", 197e12, 197e12),
    Peak(r"TPU v5", 459e12, 459e12),
    Peak(r"TPU v6", 918e12, 918e12),
    Peak(r"TPU ?v?7", 1153.5e12, 1153.5e12),
    Peak(r"A100|A800", 312e12, 156e12),
    Peak(r"H100 PCIe", 756e12, 378e12),
    Peak(r"H100 NVL|H200 NVL", 835e12, 417.5e12),
    Peak(r"H100|H200|H800|GH200", 989.4e12, 494.7e12),
    Peak(r"GB200", 2500e12, 1250e12),
    Peak(r"B200", 2250e12, 1125e12),
    Peak(r"\bL4\b", 121e12, 60e12),
    Peak(r"L40S", 362e12, 183e12),
    Peak(r"\bA10\b", 125e12, 62.5e12),
    Peak(r"MI300X|MI325X", 1307.4e12, 653.7e12),
)


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Return the peak FLOP/s of one device, or None where no table has a meaningful one (a CPU).

    Args:
      device_kind: `jax.Device.device_kind`.
      dtype: of the multiplications, "bfloat16" or "float32".
    """
    for peak in PEAKS:
        if re.search(peak.kind, device_kind, re.IGNORECASE):
            return {"bfloat16": peak.bfloat16, "float32": peak.float32}[dtype]
    return None


class LapTimer:
    """Wall time of the steps between two logged ones, without evaluations and checkpoints that came in between."""

    def __init__(self) -> None:
        self._mark, self._elsewhere = time.perf_counter(), 0.0

    def lap(self, elsewhere: float) -> float:
        """Return the seconds since the lap before (or the start), and begin the next lap.

        Args:
          elsewhere: seconds spent on something else than steps since the start, a running total.
        """
        now = time.perf_counter()
        seconds = now - self._mark - (elsewhere - self._elsewhere)
        self._mark, self._elsewhere = now, elsewhere
        return max(seconds, 1e-9)


def rates(
    *, tokens: float, seconds: float, num_devices: int, flops_per_token: float, peak: float | None
) -> dict[str, float]:
    """Return the throughput metrics of a stretch of training; MFU (arXiv:2204.02311) only where the peak is known.

    Args:
      tokens: trained on over the whole mesh.
      seconds: wall time.
      num_devices: of the whole mesh.
      flops_per_token: see `maxlm.models.cost`.
      peak: FLOP/s of one device.
    """
    per_device = tokens / seconds / num_devices
    flops = per_device * flops_per_token
    values = {
        "throughput/tokens_per_second": tokens / seconds,
        "throughput/tokens_per_second_per_device": per_device,
        "throughput/tflops_per_device": flops / 1e12,
    }
    return values if peak is None else {**values, "throughput/mfu": flops / peak}
