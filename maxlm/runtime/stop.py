"""A signal to any process stops all of them after the same step."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from types import FrameType, TracebackType
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxlm.runtime.agreement import settle

log = logging.getLogger(__name__)


class StopSignal:
    """Turn the first SIGTERM or SIGINT to any process into a stop of all after the same step; a
    second ends at once.

    Signals are read by a thread through a wake-up pipe: Python's own handlers only run between two
    bytecodes of the main thread, which may sit in a collective for ever, and then the second signal
    would do nothing.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._pending: jax.Array | None = None
        self._announced = False

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_descriptor = signal.set_wakeup_fd(
            self._writer.fileno(), warn_on_full_buffer=False
        )
        self._old_handlers = {
            s: signal.signal(s, _leave_to_thread) for s in (signal.SIGTERM, signal.SIGINT)
        }
        self._thread = threading.Thread(target=self._listen, name="stop-signal", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_descriptor)
        self._writer.close()  # ends the thread
        self._thread.join()
        self._reader.close()

    def requested(self, step: int) -> bool:
        """Tell whether to stop after `step`: the same answer on every process that asks for the
        same step.

        With several processes every call starts a small reduction of "was I signalled" and reads
        that of the call before, so that nobody waits for the device: a signal counts one call
        later.
        """
        stop = self._received is not None
        if jax.process_count() > 1:
            before, self._pending = self._pending, _any_process(stop)
            stop = before is not None and bool(before)
        if stop and not self._announced:
            self._announced = True
            log.warning("stopping after step %d, with a checkpoint", step)
        return stop

    def _listen(self) -> None:
        while data := self._reader.recv(1):
            number = data[0]
            if number not in self._old_handlers:  # another signal with a Python handler
                continue
            name = signal.Signals(number).name
            if self._received is not None:
                sys.stderr.write(
                    f"\nsecond signal ({name}): leaving at once, without a checkpoint\n"
                )
                sys.stderr.flush()
                os._exit(128 + number)
            self._received = signal.Signals(number)
            log.warning(
                "%s: finishing this step, then saving and stopping; a second signal leaves at once",
                name,
            )


def _leave_to_thread(number: int, frame: FrameType | None) -> None:
    """Do nothing: StopSignal's thread has read the signal already."""


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
