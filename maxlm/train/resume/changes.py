"""Whether a run may go on from a checkpoint: what differs from the circumstances it was saved in."""

from __future__ import annotations

import logging
from typing import Any

from maxlm.config.errors import UserError
from maxlm.config.resume import compare_runs
from maxlm.config.schema import RunConfig
from maxlm.train.setup import Datasets

log = logging.getLogger(__name__)


def refuse_changes(record: dict[str, Any] | None, config: RunConfig, datasets: Datasets) -> None:
    """Refuse to resume as another run than the one that was saved.

    Raises:
      UserError: the run has gone beyond `train.num_steps`; or settings that matter, or the data,
        have changed.
    """
    if record is None:
        return
    _refuse_fewer_steps(record["step"], config)
    matter, later, mixture = compare_runs(record["config"], config, steps_done=record["step"])
    if later:
        log.warning(
            "learning rates of steps to come are not the saved run's: %s",
            ", ".join(map(str, later)),
        )
    changes = [str(change) for change in matter]
    reordered = any(change.key.startswith(("data.", "runtime.seed")) for change in matter)
    if record["data"] != datasets.train.fingerprint:
        changes.append(
            f"data.sources (the tokens): {record['data'][:12]} -> {datasets.train.fingerprint[:12]}"
        )
        reordered = True
    before = record.get("mixture")
    now = datasets.train.mixture.until(record["consumed"]["rows"])
    if before is not None and before != now:
        changes += [*map(str, mixture), f"the mixture of rows that were read: {before} -> {now}"]
        reordered = True
    elif mixture:
        log.warning(
            "rows to come are not mixed as in the saved run: %s", ", ".join(map(str, mixture))
        )
    tokenizer = datasets.train.tokenizer.fingerprint
    if record.get("tokenizer", tokenizer) != tokenizer:
        changes.append(
            f"data.tokenizer (its contents): {record['tokenizer'][:12]} -> {tokenizer[:12]}"
        )
    if not changes:
        return
    listed = "\n  ".join(changes)
    if config.checkpoint.allow_config_change:
        log.warning(
            "resuming with changed settings (checkpoint.allow_config_change=true):\n  %s", listed
        )
        if reordered:
            log.warning(
                "the data's rows are others now: what the run has read may come again, and some may never"
            )
        return
    raise UserError(
        f"run_dir={config.run_dir} holds a run at step {record['step']} with other settings (saved -> now):\n  "
        f"{listed}\nset them back, choose another run_dir, or resume all the same with "
        "checkpoint.allow_config_change=true"
    )


def _refuse_fewer_steps(done: int, config: RunConfig) -> None:
    if done > config.train.num_steps:
        raise UserError(
            f"run_dir={config.run_dir} holds a run at step {done}, beyond train.num_steps={config.train.num_steps}; "
            f"use train.num_steps={done} or more, or another run_dir"
        )
