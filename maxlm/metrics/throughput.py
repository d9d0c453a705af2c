"""How fast a run is: tokens per second, TFLOP/s, and the share of the hardware's peak (MFU)."""

from __future__ import annotations

import time


class LapTimer:
    """Wall time of the steps between two logged ones, without evaluations and checkpoints that came
    in between.
    """

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
    """Return the throughput metrics of a stretch of training; MFU (arXiv:2204.02311) only where the
    peak is known.

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
