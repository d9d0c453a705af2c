"""The memory of a device, and what to do when there is none left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from maxlm.config.errors import RunFailedError


def memory_bytes(device: jax.Device) -> int | None:
    """Return the memory of a device; of a CPU device its share of the machine's.

    None where it is not known.
    """
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    statistics = device.memory_stats() or {}
    return statistics.get("bytes_limit")


@contextmanager
def explain_memory(cure: str) -> Iterator[None]:
    """Say what to do when a device has no memory left.

    Raises:
        RunFailedError: in place of JAX's error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise RunFailedError(f"a device has too little memory: {reason}\n{cure}") from error
