"""What a step of a run read: its rows, and of each the documents, by the run's own record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from maxlm.checkpoint import CheckpointReader, RunDirectory, tokenizer_to_open
from maxlm.config.errors import UserError
from maxlm.config.reading.explain import explain
from maxlm.config.schema import RunConfig
from maxlm.data.passages import Batch
from maxlm.tracing.folder import check_run, no_run
from maxlm.train.setup import open_datasets


def batch_of(run_dir: Path | str, step: int) -> Batch:
    """Return the batch that a run read in its step `step`, from 0, or will read.

    The checkpoint that was saved next after the step says how; without one, the newest.

    Raises:
      UserError: the run has no checkpoint, or its data are not what they were.
    """
    check_run(run_dir, step)
    run = RunDirectory(Path(run_dir).absolute())
    saved, record = _record(run, step)
    try:
        config = RunConfig.model_validate(record["config"])
    except ValidationError as error:
        listed = "\n  ".join(str(problem) for problem in explain(error, {}))
        version = record.get("versions", {}).get("maxlm", "another version")
        raise UserError(
            f"{run_dir}: its settings are those of maxlm {version}:\n  {listed}"
        ) from None
    tokenizer = tokenizer_to_open(run.path, config.data.tokenizer)
    data = config.data.model_copy(update={"tokenizer": tokenizer})
    dataset = open_datasets(config.model_copy(update={"data": data})).train
    if dataset.fingerprint != record["data"]:
        raise UserError(
            f"{run_dir}: its data are not what they were at step {saved}, so rows cannot be traced; restore the "
            "folders of data.sources"
        )
    rows = config.train.batch_size
    first = record["consumed"]["rows"] + (step - saved) * rows
    return Batch(dataset, first, first + rows)


def _record(run: RunDirectory, step: int) -> tuple[int, dict[str, Any]]:
    """Return the step and record of the first checkpoint after a step, else of the newest."""
    reader = CheckpointReader(run.checkpoints)
    steps = sorted(reader.steps())
    for saved in [*(one for one in steps if one > step), *reversed(steps)]:
        record = reader.record(saved)
        if record is not None and "consumed" in record:
            return saved, record
    raise no_run(run.path)
