"""Fit mesh and microbatches to fewer or more devices than a run was written for; the batch stays.

The axes that only copy and split what a step does for a batch follow the devices: `data`, which is
laid across slices and hosts, and `fsdp` where `data` alone cannot. All other axes say how the model
is cut, and stay. A device works on at most as many sequences at a time as before, so it needs no
more memory for activations: `train.microbatches` follows, unless a layer judges each microbatch.

Losses are those of the mesh as it was written, to rounding, and the token stream is the same: a
step reads the rows that its number says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from maxlm.config.checks import find_problems
from maxlm.config.errors import ConfigError, Problem
from maxlm.config.schema import RunConfig

_TRIED = 4096  # counts of devices that are looked at for one to use instead


def fit_to_devices(config: RunConfig, device_count: int) -> RunConfig:
    """Return the run for as many devices as there are, if `mesh.elastic` says so.

    Raises:
      ConfigError: no mesh fits; names counts of devices that have one.
    """
    if config.mesh.elastic == "none" or math.prod(config.mesh.sizes.values()) == device_count:
        return config
    fitted = _fit(config, device_count)
    if fitted is not None:
        return fitted
    below, above = range(device_count - 1, 0, -1), range(device_count + 1, 2 * device_count + 1)
    near = [
        next((str(count) for count in counts[:_TRIED] if _fit(config, count)), None)
        for counts in (below, above)
    ]
    counts = " or ".join(count for count in near if count)
    text = (
        f"mesh.elastic={config.mesh.elastic}: no mesh.data and mesh.fsdp fit {device_count} devices with the other "
        f"axes as they are and train.batch_size={config.train.batch_size}"
    )
    cure = f"use {counts} devices, or another batch size" if counts else "use another batch size"
    raise ConfigError(
        [Problem("mesh.elastic", f"{text}; {cure}")], f"the configuration on {device_count} devices"
    )


def explain(config: RunConfig, fitted: RunConfig) -> str:
    """Say in a line what `fit_to_devices` changed; empty if nothing."""
    if fitted == config:
        return ""
    before, now = (math.prod(run.mesh.sizes.values()) for run in (config, fitted))
    pairs = [
        ("mesh.data", config.mesh.data, fitted.mesh.data),
        ("mesh.fsdp", config.mesh.fsdp, fitted.mesh.fsdp),
        ("train.microbatches", config.train.microbatches, fitted.train.microbatches),
    ]
    changed = ", ".join(f"{path} {old} -> {new}" for path, old, new in pairs if old != new)
    return (
        f"{now} devices, and the mesh was written for {before}: {changed}; the batch stays "
        f"{config.train.batch_size} sequences"
    )


def _fit(config: RunConfig, device_count: int) -> RunConfig | None:
    for candidate in _candidates(config, device_count):
        if not find_problems({name: getattr(candidate, name) for name in RunConfig.model_fields}):
            return candidate
    return None


def _candidates(config: RunConfig, device_count: int) -> Iterator[RunConfig]:
    """Yield runs on so many devices, the best first."""
    mesh, batch_size = config.mesh, config.train.batch_size
    others = math.prod(mesh.sizes.values()) // (mesh.data * mesh.fsdp)
    if device_count % others:
        return
    both = device_count // others
    for fsdp in sorted(_divisors(both), key=lambda size: _distance(size, mesh.fsdp)):
        split = both * mesh.expert
        if batch_size % split:
            return
        sizes = mesh.model_copy(update={"data": both // fsdp, "fsdp": fsdp})
        for count in _microbatches(config, batch_size // split):
            train = config.train.model_copy(update={"microbatches": count})
            yield config.model_copy(update={"mesh": sizes, "train": train})


def _distance(size: int, written: int) -> tuple[bool, int]:
    """Order sizes of `fsdp`: as written; larger ones, which take less memory; smaller ones."""
    return size < written, abs(size - written)


def _microbatches(config: RunConfig, per_device: int) -> Iterator[int]:
    """Yield numbers of microbatches that keep, or make smaller, the sequences that a device works
    on at a time.

    Args:
      config: the run as it was written.
      per_device: sequences that a device has now.
    """
    if any(section.judges_microbatches for _, section in config.model.sections()):
        yield from [config.train.microbatches] * (per_device % config.train.microbatches == 0)
        return
    at_a_time = config.train.batch_size // (config.mesh.batch_devices * config.train.microbatches)
    for count in _divisors(per_device):
        if per_device // count <= at_a_time:
            yield count


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
