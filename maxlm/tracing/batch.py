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
from maxlm.tracing.rows import rows_of
from maxlm.train.setup import open_datasets


def batch_of(run_dir: Path | str, step: int) -> Batch:
    """Return the batch that a run read in its step `step`, from 0, or will read.

    The checkpoint that was saved next after the step says of which text; without one, the newest.
    Which rows, checkpoints and metrics.jsonl say: see `rows_of`.

    Raises:
      UserError: the run has no checkpoint, or its data are not what they were, or nothing says which
        rows the step read.
    """
    check_run(run_dir, step)
    run = RunDirectory(Path(run_dir).absolute())
    records = _records(run)
    steps = sorted(records)
    saved = next((one for one in steps if one > step), steps[-1])
    record = records[saved]
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
    rows = rows_of(
        run.path,
        step,
        saved={step: record["consumed"]["rows"] for step, record in records.items()},
        batch_size=config.train.batch_size,
    )
    return Batch(dataset, rows.start, rows.stop)


def _records(run: RunDirectory) -> dict[int, dict[str, Any]]:
    """Return the records of the checkpoints that have one, by their steps."""
    reader = CheckpointReader(run.checkpoints)
    found = {step: reader.record(step) for step in reader.steps()}
    records = {step: record for step, record in found.items() if record and "consumed" in record}
    if not records:
        raise no_run(run.path)
    return records
