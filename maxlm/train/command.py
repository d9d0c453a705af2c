"""`maxlm train RUN.yaml [key=value ...]`."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys

from maxlm import runtime
from maxlm.config import load_run
from maxlm.train.loop import train


def run(arguments: argparse.Namespace) -> int:
    """Train, or resume, the run of a YAML file; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    config = load_run(arguments.config, arguments.overrides).config
    runtime.start(config.runtime)
    command = shlex.join(["maxlm", "train", arguments.config, *arguments.overrides])
    with runtime.fail_together():
        train(config, command=command)
    return 0
