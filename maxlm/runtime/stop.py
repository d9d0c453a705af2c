"""A signal to any process stops all of them after the same step."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxlm.events import event
from maxlm.process.phases import waiting
from maxlm.process.signals import listening
from maxlm.runtime.agreement import settle

log = logging.getLogger(__name__)


class StopSignal:
    """Turn a signal to any process into a stop of all after the same step.

    Within the block there is something to save. Before it a signal ends its process at once
    (`maxlm.process.signals`).
    """

    def __init__(self) -> None:
        self._pending: jax.Array | None = None
        self._announced = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._listener = self._stack.enter_context(listening())
        self._stack.enter_context(self._listener.training())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def requested(self, step: int) -> bool:
        """Tell whether to stop after `step`: the same answer on every process that asks as often.

        With several processes every call starts a small reduction of "was I signalled" and reads
        that of the call before, so that nobody waits for the device: a signal counts one call
        later.
        """
        if self._announced:  # on all of them
            return True
        received = self._listener.received
        stop = received is not None
        if jax.process_count() > 1:
            before, self._pending = self._pending, _any_process(stop)
            with waiting():
                stop = before is not None and bool(before)
        if stop:
            self._announced = True
            name = received.name if received is not None else "sent to another process"
            log.warning(
                "stopping after step %d, with a checkpoint",
                step,
                extra=event("stop", step=step, signal=name),
            )
        return stop


def _any_process(mine: bool) -> jax.Array:
    """Start a reduction over all processes; the result is a replicated int32 scalar, nonzero if any
    said True.
    """
    mesh = Mesh(np.asarray(jax.devices()), ("device",))
    flags = jax.make_array_from_callback(
        (mesh.size,),
        NamedSharding(mesh, PartitionSpec("device")),
        lambda _: np.full(1, mine, np.int32),
    )
    largest: jax.Array = settle(_largest(flags))
    return largest


@jax.jit
def _largest(flags: jax.Array) -> jax.Array:
    return jnp.max(flags)
