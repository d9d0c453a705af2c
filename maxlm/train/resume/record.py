"""What a checkpoint says besides its arrays: the run, what it has consumed, and the circumstances:
text, devices, versions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maxlm.config.schema import RunConfig
from maxlm.data.dataset import Dataset
from maxlm.data.shards import TokenShards
from maxlm.files import read_regular
from maxlm.health.hosts import versions
from maxlm.train.setup import Datasets, Program
from maxlm.train.state import Consumed

ROWS_OF_ORDER = 32
"""Rows read last whose places in the text are kept: what says whether the order is still the same."""


class Circumstances(NamedTuple):
    """What a run's numbers depend on besides its settings; the same for all of a process' life.

    Attributes:
      datasets: open.
      text: fingerprint by "train/SOURCE" and "validation/SOURCE", as the indexes say.
      pages: hash of sampled pages, by the same names.
      manifests: SHA-256 of each source's manifest.json, None where there is none.
      compute_dtype: that the model computes in here.
      devices: their platform, kind and number.
      versions: of Python, packages, driver and code.
    """

    datasets: Datasets
    text: dict[str, str]
    pages: dict[str, str]
    manifests: dict[str, str | None]
    compute_dtype: str
    devices: dict[str, Any]
    versions: dict[str, str]

    @classmethod
    def of(cls, config: RunConfig, program: Program, datasets: Datasets) -> Circumstances:
        """Look at what there is. Reads up to four pages of every shard, 32 KiB, and the manifests.

        Raises:
          UserError: a page is damaged.
        """
        shards = _shards(datasets)
        device = program.mesh.devices.flat[0]
        return cls(
            datasets=datasets,
            text={name: one.fingerprint for name, one in shards.items()},
            pages={name: one.sample() for name, one in shards.items()},
            manifests={
                name: _manifest(Path(source.path)) for name, source in config.data.sources.items()
            },
            compute_dtype=program.execution.compute_dtype.name,
            devices={
                "platform": device.platform,
                "kind": device.device_kind,
                "count": program.mesh.size,
            },
            versions=versions(),
        )

    def record(self) -> dict[str, Any]:
        """Return what each checkpoint's record says of them, as JSON can hold it."""
        return {name: value for name, value in self._asdict().items() if name != "datasets"}


def record_of(
    config: RunConfig, program: Program, datasets: Datasets, consumed: Consumed
) -> dict[str, Any]:
    """Return what the record of a checkpoint says of its run, as JSON can hold it."""
    train = datasets.train
    return {
        "consumed": consumed._asdict(),
        **program.execution.layout.record(),
        "mesh": program.mesh_sizes.sizes,
        "config": config.model_dump(mode="json"),
        "data": train.fingerprint,
        "tokenizer": train.tokenizer.fingerprint,
        "mixture": train.mixture.until(consumed.rows),
        "order": order_of(train, consumed.rows),
    }


def order_of(dataset: Dataset, rows: int) -> str:
    """Return a hash of the source and place of the last rows of [0, rows)."""
    last = range(max(rows - ROWS_OF_ORDER, 0), rows)
    text = json.dumps([dataset.origin(row) for row in last])
    return hashlib.sha256(text.encode()).hexdigest()


def _shards(datasets: Datasets) -> Mapping[str, TokenShards]:
    train = {f"train/{name}": shards for name, shards in datasets.train.shards.items()}
    held_out = {f"validation/{n}": one.shards[n] for n, one in datasets.validation.items()}
    return {**train, **held_out}


def _manifest(folder: Path) -> str | None:
    try:
        return hashlib.sha256(read_regular(folder / "manifest.json")).hexdigest()
    except OSError:
        return None
