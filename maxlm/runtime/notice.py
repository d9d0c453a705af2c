"""Whether a stop fits into the notice: how long this run takes from the signal to its end, and how
long the platform waits before it ends it by force.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections import deque
from collections.abc import Callable

from maxlm.events import event

log = logging.getLogger(__name__)

VARIABLE = "MAXLM_NOTICE_SECONDS"
"""Set by launchers: the seconds between the signal and the end by force."""
_STEPS = 16  # recent ones, whose median a step is taken to last


def notice_seconds(setting: float | None) -> float | None:
    """Return how long the platform waits, as the setting or else the launcher says; None if nobody
    does.
    """
    if setting is not None:
        return setting
    try:
        seconds = float(os.environ.get(VARIABLE, ""))
    except ValueError:
        return None
    return seconds if seconds > 0 else None


class StopTime:
    """Measures what a stop needs: the step that is going on, the copy of the state off the devices,
    and its way to the disk. Says so after the first save, and again if it becomes much longer; a start
    that resumes a run says what the starts before it have measured.

    Args:
      notice: how long the platform waits; None if that is not known.
      clock: returns seconds.
    """

    def __init__(
        self, notice: float | None, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.notice, self._clock = notice, clock
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._last: float | None = None
        self._told = 0.0

    def step(self) -> None:
        """Take note that a step has begun."""
        now = self._clock()
        if self._last is not None:
            self._steps.append(now - self._last)
        self._last = now

    def saved(self, step: int, *, copy_seconds: float, write_seconds: float) -> None:
        """Take note of a save that is whole: how long training waited, and how long it took then."""
        step_seconds = statistics.median(self._steps) if self._steps else 0.0
        needed = step_seconds + copy_seconds + write_seconds
        if needed <= 1.5 * self._told:
            return
        self._told = needed
        self._tell(
            step,
            needed,
            f"a stop takes about {needed:.1f} s: a step {step_seconds:.1f} s, the copy off the devices "
            f"{copy_seconds:.1f} s, writing and reading back {write_seconds:.1f} s",
        )

    def recall(self, step: int | None, seconds: object) -> None:
        """Say what was measured before this start, which may be ended before its first save.

        Args:
          step: after which it was measured.
          seconds: what it was; anything but a number is passed over, as a file may be damaged.
        """
        if isinstance(seconds, int | float):
            after = "" if step is None else f", after step {step}"
            self._tell(
                step,
                seconds,
                f"a stop took about {seconds:.1f} s when it was measured before this start{after}",
            )

    def _tell(self, step: int | None, needed: float, text: str) -> None:
        values = {"seconds": round(needed, 3), "notice_seconds": self.notice}
        if self.notice is not None and needed > self.notice:
            log.warning(
                "%s; the platform waits %g s: raise its notice if it can be (stop_seconds of the cluster), or use a "
                "faster run_dir",
                *(text, self.notice),
                extra=event("stop_time", step=step, **values),
            )
        else:
            known = f"; the platform waits {self.notice:g} s" if self.notice is not None else ""
            log.info("%s%s", text, known, extra=event("stop_time", step=step, **values))
