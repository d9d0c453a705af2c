"""How fast a run is: tokens per second, TFLOP/s, the share of the hardware's peak (MFU); slow steps."""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import NamedTuple


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


class SlowStep(NamedTuple):
    """A step that took long: its seconds, and the median of the steps before it."""

    seconds: float
    median: float


class SlowSteps:
    """Find steps that take far longer than those before; many in a row are found once.

    Args:
      window: steps that the median is of, and that pass after a slow one until another is told.
      factor: of the median, that a slow step exceeds.
      least_seconds: above the median, that it exceeds too: short steps vary by themselves.
    """

    def __init__(self, *, window: int = 64, factor: float = 3.0, least_seconds: float = 1.0):
        self._factor, self._least_seconds = factor, least_seconds
        self._recent: deque[float] = deque(maxlen=window)
        self._quiet = 0

    def look_at(self, seconds: float) -> SlowStep | None:
        """Take the seconds of the next step; return it if it is slow and not yet told of."""
        median = statistics.median(self._recent) if len(self._recent) >= 8 else None
        self._recent.append(seconds)
        self._quiet = max(self._quiet - 1, 0)
        if median is None or seconds <= max(self._factor * median, median + self._least_seconds):
            return None
        told, self._quiet = self._quiet > 0, self._recent.maxlen or 0
        return None if told else SlowStep(seconds, median)


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
