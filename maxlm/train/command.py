"""`maxlm train RUN.yaml [key=value ...]`."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from typing import TextIO

from maxlm import runtime
from maxlm.config import load_run
from maxlm.config.cluster.exit_codes import Exit
from maxlm.health.start import check_hosts
from maxlm.metrics.history import History
from maxlm.metrics.history.timesheet import process_age_seconds
from maxlm.process.watchdog import watching
from maxlm.train.loop import train


class TerminalHandler(logging.StreamHandler[TextIO]):
    """Log to what sys.stderr is now: while the progress line is shown, that prints above the line.

    The level of the root logger counts, whatever lets a line through before: processes but the
    first show errors alone, and keep all events.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        if record.levelno >= logging.getLogger().level:
            # Not `setStream`, which flushes the one before: it may be closed by now.
            self.stream = sys.stderr
            super().emit(record)


def run(arguments: argparse.Namespace) -> int:
    """Train, or resume, the run of a YAML file; return the exit code."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(levelname)s %(message)s",
        handlers=[TerminalHandler()],
        force=True,
    )
    config = load_run(arguments.config, arguments.overrides).config
    command = shlex.join(["maxlm", "train", arguments.config, *arguments.overrides])
    # Set by launch/local.py: the same run needs as many processes again.
    if "MAXLM_LAUNCHER" in os.environ:
        command = f"{os.environ['MAXLM_LAUNCHER']} {command}"
    # History inside, as what ends one of several processes ends it at once.
    with (
        watching(config.runtime.timeouts.by_phase()),
        runtime.fail_together(),
        History(process_age_seconds()) as history,
    ):
        runtime.start(config.runtime)
        check_hosts()
        done = train(config, command=command, history=history)
        return Exit.DONE if done else Exit.STOPPED
