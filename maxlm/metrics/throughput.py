"""How fast a run is: tokens per second, TFLOP/s, and the share of the hardware's peak (MFU)."""

from __future__ import annotations


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
