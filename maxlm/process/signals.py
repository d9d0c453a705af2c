"""Signals that ask a process to stop are heard from its first moment on, whatever it is doing.

A thread reads them from a wake-up pipe. Python's own handlers run between two bytecodes of the main
thread, which may sit in the compiler or in a collective; and the exception of a Ctrl-C is swallowed
where it happens to be raised in a callback of the garbage collector.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType

from maxlm.events import last_event
from maxlm.process.last_words import tell
from maxlm.process.phases import current

log = logging.getLogger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Each asks for a stop. Slurm sends SIGUSR1 where it is told to, a terminal that closes SIGHUP."""

INSISTING = (signal.SIGTERM, signal.SIGINT)
"""The second of these ends the process at once. SIGHUP and SIGUSR1 are sent along with them, or
before them, by programs that would have the process save.
"""

STOPPED = os.EX_TEMPFAIL
"""`Exit.STOPPED`, without loading maxlm.config for it."""


class Stage(Enum):
    """What a first signal means."""

    NOTHING_NEW = "nothing that is not saved: leave at once"
    TRAINING = "finish the step, save, stop"
    ENDING = "everything is saved: go on to the end"


class Listener:
    """Hears signals for the process; only one at a time, made in the main thread."""

    def __init__(self, leave: Callable[[int], None] = os._exit) -> None:
        self.received: signal.Signals | None = None
        """The first of them, once there was one that is to be obeyed after a save."""
        self._leave, self._stage, self._insisted = leave, Stage.NOTHING_NEW, 0
        self._lock = threading.Lock()
        self._taken: list[signal.Signals] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over, until the end of the block."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        old_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        # nohup has SIGHUP ignored: the run is to outlive its terminal.
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._taken = [number for number in STOPPING if number != signal.SIGHUP or not ignored]
        old_handlers = {number: signal.signal(number, _leave_to_thread) for number in self._taken}
        thread = threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._taken = []
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_descriptor)
            writer.close()  # ends the thread
            thread.join()
            reader.close()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within the block there is something to save before a stop; after it, all is saved."""
        # Libraries that were loaded meanwhile may have changed that: libtpu has SIGHUP ignored.
        for number in self._taken:
            signal.signal(number, _leave_to_thread)
        with self._lock:
            self._stage = Stage.TRAINING
        try:
            yield
        finally:
            with self._lock:
                self._stage = Stage.ENDING

    def hear(self, number: int) -> None:
        """Act upon a signal."""
        if number not in STOPPING:  # another one with a Python handler
            return
        name = signal.Signals(number).name
        with self._lock:
            stage, first = self._stage, self.received is None
            self._insisted += number in INSISTING
            if first and stage is not Stage.NOTHING_NEW:
                self.received = signal.Signals(number)
        if stage is Stage.NOTHING_NEW:
            self._stop_at_once(name)
        elif self._insisted > 1:
            _say(f"\nsecond signal ({name}): leaving at once, without a checkpoint")
            self._leave(128 + number)
        elif not first:
            tell(lambda: log.warning("%s: stopping already", name))
        elif stage is Stage.TRAINING:
            text = (
                "%s: finishing this step, then saving and stopping; a second signal leaves at once"
            )
            tell(lambda: log.warning(text, name))
        else:
            tell(lambda: log.warning("%s: everything is saved, and ending already", name))

    def _stop_at_once(self, name: str) -> None:
        phase = current().phase
        tell(
            lambda: log.warning(
                "%s during %s: stopped; there was nothing to save, the next start goes on from the "
                "newest checkpoint",
                name,
                phase,
                extra=last_event("stop", signal=name, phase=phase),
            )
        )
        self._leave(STOPPED)

    def _listen(self, reader: socket.socket) -> None:
        while data := reader.recv(1):
            self.hear(data[0])


class _Here:
    """The process' listener, if there is one."""

    listener: Listener | None = None


@contextmanager
def listening() -> Iterator[Listener]:
    """Hear the process' signals until the end of the block; return who does so already if one does."""
    if _Here.listener is not None:
        yield _Here.listener
        return
    listener = Listener()
    with listener.listening():
        _Here.listener = listener
        try:
            yield listener
        finally:
            _Here.listener = None


def _say(text: str) -> None:
    """Write a line to the terminal, past everything that may hold a lock."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _leave_to_thread(number: int, frame: FrameType | None) -> None:
    """Do nothing: the listener's thread has read the signal already."""
