"""The cheap part of `maxlm doctor`, which training begins with."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from maxlm.config.errors import UserError
from maxlm.config.schema import CheckpointConfig
from maxlm.health.exchange import exchange
from maxlm.health.finding import Finding, Level
from maxlm.health.folders import check_folder, check_space, saved_bytes
from maxlm.health.hosts import check_clocks, check_devices, check_versions, describe

log = logging.getLogger(__name__)


def check_hosts() -> None:
    """Compare the hosts with each other, if there are several processes.

    Raises:
      UserError: versions, code or devices differ.
    """
    if jax.process_count() == 1:
        return
    processes = exchange(describe())
    clocks = check_clocks()
    _act([check_versions(processes), check_devices(processes), *([clocks] if clocks else [])])


def check_run_folder(path: Path, state: Any, config: CheckpointConfig) -> None:
    """Look at the folder of a run, which exists.

    Args:
      path: of the folder.
      state: the train state, as arrays or shapes.
      config: what is kept.

    Raises:
      UserError: not all hosts see the folder.
    """
    if jax.process_count() > 1:
        _act([check_folder(path)])
    space = check_space(path, saved_bytes(state), config)
    _act([space._replace(level=min(space.level, Level.WARNING))])


def _act(findings: Iterable[Finding]) -> None:
    """Warn of what is bad, and refuse to go on with what is worse."""
    bad = [str(finding) for finding in findings if finding.level is Level.PROBLEM]
    for finding in findings:
        if finding.level is Level.WARNING:
            log.warning("%s: %s", finding.check, finding)
    if bad:
        raise UserError("\n".join([*bad, "maxlm doctor RUN.yaml says more"]))
