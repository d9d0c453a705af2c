"""What a run leaves behind when its steps stop it: RUN_DIR/dumps/step-N, for people to look into.

The folder is of bounded size, and small: rows of the batch with their tokens and documents, the
window of losses and gradient norms, the settings.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import yaml

from maxlm.config.errors import UserError
from maxlm.config.schema import RunConfig
from maxlm.data.dataset import Dataset
from maxlm.data.passages import Batch
from maxlm.files import write_whole
from maxlm.train.state import Consumption

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 2**20
"""Of the rows of a batch; a row of 8,192 tokens takes about 50 KB."""


class Dumps(NamedTuple):
    """The dumps of a run.

    Attributes:
      dataset: what its steps read.
      consumption: which rows.
      config: the run.
    """

    dataset: Dataset
    consumption: Consumption
    config: RunConfig

    def write(self, step: int, values: Mapping[str, Any]) -> Path | None:
        """Write the folder of a step and return it; None, with a warning, where that is not
        possible, and in all processes but the first.

        Args:
          step: steps done; the last of them is what is dumped.
          values: what is known of it and of the steps before, as JSON can hold it.
        """
        if jax.process_index():
            return None
        folder = Path(self.config.run_dir) / "dumps" / f"step-{step:08d}"
        rows = [self.consumption.at(number).rows for number in (step - 1, step)]
        settings = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "steps.json", json.dumps(values, indent=1).encode())
            write_whole(folder / "config.yaml", settings.encode())
            write_whole(folder / "rows.jsonl", _rows(Batch(self.dataset, *rows)))
        except (OSError, UserError) as error:  # what stops the run is to be seen, not this
            log.warning("%s could not be written: %s", folder, error)
            return None
        return folder


def _rows(batch: Batch) -> bytes:
    """Return a line of JSON for each row, as many as there is room for, and a last one that counts
    those left out.
    """
    lines, size = list[bytes](), 0
    for row in range(batch.first, batch.stop):
        line = json.dumps(_row(batch, row)).encode() + b"\n"
        size += len(line)
        if size > MAX_BYTES:
            left = {"rows_left_out": batch.stop - row, "limit_bytes": MAX_BYTES}
            lines.append(json.dumps(left).encode() + b"\n")
            break
        lines.append(line)
    return b"".join(lines)


def _row(batch: Batch, row: int) -> dict[str, Any]:
    source, offset = batch.dataset.origin(row)
    told: dict[str, Any] = {"row": row, "source": source, "offset": offset}
    try:
        passages = Batch(batch.dataset, row, row + 1).passages()
        told["documents"] = [
            {"id": each.id, "shard": str(each.shard), "first": each.first, "tokens": each.tokens}
            for each in passages
        ]
    except UserError as error:  # a folder that says nothing of documents
        told["documents"] = str(error)
    fields = batch.dataset.rows(row, row + 1)
    return told | {name: fields[name][0].tolist() for name in ("tokens", "segment_ids")}
