"""Do what may get stuck, such as writing a line to a full pipe, but do not wait for it for long."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable

SECONDS = 2.0
SHOW_CURSOR = "\x1b[?25h"


def tell(work: Callable[[], None], *, seconds: float = SECONDS) -> None:
    """Do it and flush, in a thread of its own: the main thread may hold a lock of the log, or be
    stuck in a full pipe or a folder that does not answer.
    """

    def run() -> None:
        with contextlib.suppress(OSError, ValueError):  # a stream that is closed
            work()
            sys.stdout.flush()
            if sys.stderr.isatty():  # a progress bar hides it
                sys.stderr.write(SHOW_CURSOR)
            sys.stderr.flush()

    thread = threading.Thread(target=run, name="last-words", daemon=True)
    thread.start()
    thread.join(seconds)
