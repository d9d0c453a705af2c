"""Go on with fewer or more devices: fit the run to those that are there, and say so."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import jax

from maxlm.config.fitting.elastic import explain, fit_to_devices
from maxlm.config.schema import MeshConfig, RunConfig
from maxlm.events import event

log = logging.getLogger(__name__)


def fit(config: RunConfig) -> RunConfig:
    """Return the run for the devices that are there; see `fit_to_devices`.

    Raises:
      ConfigError: it does not fit.
    """
    fitted = fit_to_devices(config, jax.device_count())
    changed = explain(config, fitted)
    if changed:
        log.warning("%s", changed)
    return fitted


def tell_resized(record: Mapping[str, Any] | None, mesh: MeshConfig, config: RunConfig) -> None:
    """Tell of a run that goes on with another mesh than it was saved with.

    Args:
      record: of the checkpoint that it goes on from, if there is one.
      mesh: its sizes now.
      config: the run.
    """
    before = None if record is None else record.get("mesh")
    if record is None or before is None or before == mesh.sizes:
        return
    devices = [math.prod(sizes.values()) for sizes in (before, mesh.sizes)]
    log.warning(
        "the run goes on with %d devices instead of %d: %s, in %d microbatches",
        *reversed(devices),
        " ".join(f"{axis}={size}" for axis, size in mesh.sizes.items() if size > 1) or "one device",
        config.train.microbatches,
        extra=event(
            "resized",
            step=record["step"],
            devices_before=devices[0],
            devices=devices[1],
            mesh=mesh.sizes,
            microbatches=config.train.microbatches,
        ),
    )
