"""Whether losses go on after a resume as they were before it: the first ones beside the recorded
ones.

The median of the first k losses after a resume (k = 8) is compared with the median of the last 32
before it; of an even number the lower of the two in the middle. How far the two may be apart is
read from the recorded window of 128 losses itself: at each place in it, the same difference of k
losses and the 32 before them. The largest of these, and the second largest of single losses to the
32 before them, already hold the trend, slow swings and batches of other sources; a rise is a jump
above the larger of the two by more than six robust standard deviations of these differences
(1.4826 x median absolute deviation) and 2 % of the level. In windows of independent losses with
standard deviation s that is 5 s (median over windows; 6.2 s in 5 % of them) and the 2 %. Medians
forgive single spikes.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from maxlm.checkpoint import Restored
from maxlm.config.errors import RunFailedError
from maxlm.config.schema import RunConfig
from maxlm.data.mixture.rows import Mixture
from maxlm.events import event
from maxlm.train.resume.changes import loss_may_change
from maxlm.train.resume.record import Circumstances
from maxlm.train.resume.rules import Difference
from maxlm.train.state import Consumption

log = logging.getLogger(__name__)

Action = Literal["stop", "warn", "off"]

KEPT = 128
"""Losses of the window, of the steps done last."""
FEWEST = 96
"""Fewer recorded ones say too little."""
BEFORE = 32
"""Losses that the level is the median of."""
FIRST = 8
"""Losses after a resume that are compared."""
FEWEST_FIRST = 4
"""As many are compared if a checkpoint is due before the eighth."""
SIGMAS = 6.0
FLOOR = 0.02
"""Of the level, and in nats: a change of this size is nobody's fault."""


class Course(NamedTuple):
    """What a window of losses lets expect of the next ones; float64 (...).

    Attributes:
      level: median of the last 32.
      noise: robust standard deviation of the median of k losses around that of the 32 before.
      low: medians of the next k below it are a fall.
      high: those above it are a jump.
    """

    level: np.ndarray
    noise: np.ndarray
    low: np.ndarray
    high: np.ndarray


def course_of(losses: np.ndarray, first: int = FIRST) -> Course:
    """Return what windows of losses let expect of the next ones.

    Args:
      losses: float64 (..., n), n >= FEWEST, in order.
      first: how many of the next ones are compared, k.
    """
    steps = _differences(losses, first)
    noise = 1.4826 * median(np.abs(steps - median(steps)[..., None]))
    single = np.sort(_differences(losses, 1), axis=-1)
    level = median(losses[..., -BEFORE:])
    margin = SIGMAS * noise + FLOOR * (1 + np.abs(level))
    low = level + np.minimum(steps.min(axis=-1), single[..., 1]) - margin
    high = level + np.maximum(steps.max(axis=-1), single[..., -2]) + margin
    return Course(level, noise, low, high)


def _differences(losses: np.ndarray, count: int) -> np.ndarray:
    """Return, at each place, the median of `count` losses less that of the 32 before them."""

    def medians(size: int) -> np.ndarray:
        return median(np.lib.stride_tricks.sliding_window_view(losses, size, axis=-1))

    after = medians(count)[..., BEFORE:]
    return after - medians(BEFORE)[..., : after.shape[-1]]


def median(values: np.ndarray) -> np.ndarray:
    """Return the median along the last axis; of an even number the lower of the two in the middle,
    which two spikes of four do not move.
    """
    middle = (values.shape[-1] - 1) // 2
    return np.asarray(np.partition(values, middle, axis=-1)[..., middle])


class LossCheck:
    """Keep the last losses for the next checkpoint's record; judge the first ones after a resume."""

    def __init__(self, recorded: Sequence[float] = (), *, step: int = 0, action: Action = "off"):
        """Begin after a step.

        Args:
          recorded: the losses in the record of the checkpoint that is resumed from.
          step: of this checkpoint.
          action: what a jump does.
        """
        self._last = deque(map(float, recorded), maxlen=KEPT)
        self._before = np.array(self._last, np.float64)
        self._step, self._action = step, action
        self._first: list[float] | None = [] if self._before.size >= FEWEST else None
        if action == "off":
            self._first = None
        elif recorded and self._first is None:
            log.info("only %d losses were recorded: those to come are not compared", len(recorded))

    @property
    def kept(self) -> list[float]:
        """The last losses, for the record: six digits each."""
        return [float(f"{loss:.6g}") for loss in self._last]

    def add(self, step: int, loss: float) -> None:
        """Take up the loss of the last of `step` steps; one that is not finite does not count.

        Raises:
          RunFailedError: it is the eighth, and they have jumped.
        """
        if not math.isfinite(loss):
            return
        self._last.append(loss)
        if self._first is not None:
            self._first.append(loss)
            if len(self._first) == FIRST:
                self._judge(step)

    def before_save(self, step: int) -> None:
        """Judge what there is before a checkpoint of it can take the place of an older one.

        Raises:
          RunFailedError: the losses have jumped.
        """
        if self._first is not None and len(self._first) >= FEWEST_FIRST:
            self._judge(step)

    def _judge(self, step: int) -> None:
        first, self._first = self._first, None
        assert first is not None
        found, course = float(median(np.array(first))), course_of(self._before, len(first))
        level, high, low = float(course.level), float(course.high), float(course.low)
        said = (
            f"the median of the first {len(first)} losses after the resume from step {self._step} is {found:.4f}, "
            f"that of the {BEFORE} before it {level:.4f}"
        )
        values = {
            "resumed_from": self._step,
            "found": found,
            "level": level,
            "low": low,
            "high": high,
            "losses": first,
            "before": [float(f"{loss:.6g}") for loss in self._before[-BEFORE:]],
        }
        if found > high:
            self._jumped(
                f"{said}: more than {high:.4f}, all that {self._before.size} recorded losses allow",
                event("loss_jump", step=step, **values),
            )
        elif found < low:
            marked = event("loss_fall", step=step, **values)
            log.warning("%s: below %.4f; is it other text, or known?", said, low, extra=marked)
        else:
            marked = event("resume_confirmed", step=step, **values)
            log.info("%s: as expected (%.4f to %.4f)", said, low, high, extra=marked)

    def _jumped(self, said: str, marked: dict[str, Any]) -> None:
        log.warning("%s", said, extra=marked)
        if self._action == "stop":
            raise RunFailedError(
                f"{said}. The run is stopped: weights, optimizer or text may not be what they were. The checkpoint of "
                f"step {self._step} is as it was. See what the log says of this resume, and start again: from an older "
                "checkpoint with checkpoint.resume_from, or, if the losses are right, with checkpoint.loss_jump=warn"
            )


def loss_check(
    restored: Restored | None,
    differences: Sequence[Difference],
    config: RunConfig,
    consumption: Consumption,
    circumstances: Circumstances,
) -> LossCheck:
    """Return the check of a run that goes on from a checkpoint, or begins.

    A jump that what has been changed knowingly may explain is warned of: settings, rates, or a
    stage of the mixture that begins.
    """
    if restored is None:
        return LossCheck()
    action = config.checkpoint.loss_jump
    mixture = circumstances.datasets.train.mixture
    known = loss_may_change(differences) or enters_stage(mixture, consumption, restored.step)
    if action == "stop" and known:
        action = "warn"
    return LossCheck(restored.record.get("losses", ()), step=restored.step, action=action)


def enters_stage(mixture: Mixture, consumption: Consumption, step: int) -> bool:
    """Tell whether another stage of the mixture begins among the losses that are compared."""
    first, last = (consumption.at(max(at, 0)).rows for at in (step - BEFORE, step + FIRST))
    return any(first < stage.start < last for stage in mixture.stages)
