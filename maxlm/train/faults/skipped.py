"""Tell of steps that were skipped or are spikes, and decide what follows: nothing, the end, or a
roll-back.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maxlm.config.errors import RunFailedError
from maxlm.config.schema import TrainConfig
from maxlm.events import event
from maxlm.train.faults.spikes import SpikeReport, SpikeWindow, in_order
from maxlm.train.step import StepMetrics

log = logging.getLogger(__name__)

_CURE = (
    "Lower optimizer.learning_rate or optimizer.clip_norm, or lengthen schedule.warmup_steps, and start again: from "
    "there with checkpoint.allow_config_change=true, from an older one with checkpoint.resume_from too, or in another "
    "run_dir"
)


class Skipped:
    """What is said about steps one after the other.

    Args:
      config: how many may be skipped, and what then.
      dump: writes what is known of a step, as JSON can hold it, and returns where.
      saved_before: says which checkpoint is from before the steps that end at one.
    """

    def __init__(
        self,
        config: TrainConfig,
        dump: Callable[[int, Mapping[str, Any]], Path | None],
        *,
        saved_before: Callable[[int], str],
    ):
        self._config, self._dump, self._saved_before = config, dump, saved_before
        self._told: int | None = None  # the last spike that a line told of
        self._untold = 0  # spikes since
        self._steps: deque[dict[str, Any]] = deque(maxlen=config.spikes.window)

    def read(self, step: int, metrics: StepMetrics, window: SpikeWindow | None) -> bool:
        """Tell of a step; return whether the run is to be rolled back to before it.

        Args:
          step: steps done.
          metrics: of the last of them, on the host.
          window: what later spikes are told from, on the devices.

        Raises:
          RunFailedError: too many steps were skipped.
        """
        spikes, skips = metrics.spikes, int(metrics.skipped_in_row)
        self._steps.append({"step": step, **_values(metrics), "skipped_in_row": skips})
        if spikes is not None and spikes.spike:
            self._tell_spike(step, metrics, spikes)
        elif metrics.skipped_in_row:
            log.warning(
                "step %d was skipped: its loss (%s) or gradient (norm %s) is not finite",
                step,
                *_numbers(metrics),
                extra=event("skipped_step", step=step, in_row=skips, **_values(metrics)),
            )
        cause = self._cause(step, metrics)
        if not cause:
            return False
        rule = self._config.spikes
        if spikes is not None and rule.then == "roll_back":
            if spikes.roll_backs < rule.max_roll_backs:
                self._write(step, cause, window)
                return True
            cause += f", and the run was rolled back {spikes.roll_backs} times (train.spikes.max_roll_backs) before"
        raise self.failure(step, cause, window)

    def failure(self, step: int, cause: str, window: SpikeWindow | None) -> RunFailedError:
        """Write a dump, and return what ends the run."""
        folder = self._write(step, cause, window)
        where = (
            f" What step {step} read, and the steps before it, are in {folder}." if folder else ""
        )
        log.error("stopped by its steps", extra=event("diverged", step=step, cause=cause))
        return RunFailedError(f"{cause}. {self._saved_before(step)}.{where} {_CURE}")

    def _write(self, step: int, cause: str, window: SpikeWindow | None) -> Path | None:
        values: dict[str, Any] = {"step": step, "cause": cause, "steps": list(self._steps)}
        if window is not None:
            values["window"] = in_order(window)
        return self._dump(step, values)

    def _tell_spike(self, step: int, metrics: StepMetrics, spikes: SpikeReport) -> None:
        skipped = bool(metrics.skipped_in_row)
        since = self._told
        # Where nothing is done about them, one line a window is enough; `optim/spikes` counts all.
        if not skipped and since is not None and step < since + self._config.spikes.window:
            self._untold += 1
            return
        untold, self._told, self._untold = self._untold, step, 0
        loss, norm = _numbers(metrics)
        log.warning(
            "step %d is a spike%s: loss %.4g (limit %.4g), gradient norm %.4g (limit %.4g)%s",
            step,
            " and was skipped" if skipped else "",
            *(loss, float(spikes.loss_limit), norm, float(spikes.norm_limit)),
            f"; {untold} more since step {since}" if untold else "",
            extra=event(
                "spike",
                step=step,
                skipped=skipped,
                untold=untold,
                **_values(metrics),
                loss_limit=float(spikes.loss_limit),
                norm_limit=float(spikes.norm_limit),
            ),
        )

    def _cause(self, step: int, metrics: StepMetrics) -> str:
        """Say why the run cannot go on like this, if it cannot."""
        row, most, rule = (
            metrics.skipped_in_row,
            self._config.max_skipped_steps,
            self._config.spikes,
        )
        loss, norm = _numbers(metrics)
        last = f"(loss {loss}, gradient norm {norm})"
        if row >= most:
            what = "that is not finite" if rule.kind != "skip" else "that is not finite or a spike"
            return (
                f"the last {row} steps, up to step {step}, had a loss or gradient {what} {last} and were skipped "
                f"(train.max_skipped_steps={most})"
            )
        recent = 0 if metrics.spikes is None or rule.kind != "skip" else metrics.spikes.recent
        if recent >= rule.max_skipped and row:
            return (
                f"{recent} of the last {rule.window} steps, up to step {step}, had a loss or gradient that is not "
                f"finite or a spike {last} and were skipped (train.spikes.max_skipped={rule.max_skipped})"
            )
        return ""


def _numbers(metrics: StepMetrics) -> tuple[float, float]:
    return float(metrics.sums.objective), float(metrics.gradient_norm)


def _values(metrics: StepMetrics) -> dict[str, float | str]:
    """Return loss and gradient norm as JSON can hold them."""
    names = zip(("loss", "gradient_norm"), _numbers(metrics), strict=True)
    return {name: value if math.isfinite(value) else str(value) for name, value in names}
