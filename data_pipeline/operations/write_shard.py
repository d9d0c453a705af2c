"""Write one token shard: the pieces of a range of places, from all files, in their order; and beside
it whose they are, so that a row of a batch can be traced to its documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.engine.isolation.watch import Watch
from data_pipeline.engine.task import Task
from data_pipeline.operations.product import Product
from data_pipeline.storage.whole import written_whole
from data_pipeline.tokens.pieces import Pieces, bin_starts, read_bins
from maxlm.data.shards.document_ids import IDS_SCHEMA, ids_name
from maxlm.data.shards.writer import ShardFile

AT_A_TIME = 2**23  # tokens that are sorted at a time, unless one bin has more


def write_shard(task: Task, watch: Watch) -> Product:
    """Write the shard of bins [first, stop) of `settings.split`.

    The first input is a JSON list of the files of pieces.
    """
    del watch
    settings = task.settings
    files = [Path(path) for path in json.loads(task.paths[0].read_bytes())]
    path = task.folder / settings["file"]
    ids = path.with_name(ids_name(path.name))
    with (
        written_whole(path) as unfinished,
        written_whole(ids) as unfinished_ids,
        pq.ParquetWriter(unfinished_ids, IDS_SCHEMA, compression="zstd") as names,
    ):
        shard = ShardFile(
            unfinished,
            vocab_size=settings["vocab_size"],
            first_page=settings["first_page"],
            first_mask_page=settings["first_mask_page"],
            name=path.name,
        )
        for first, stop in _portions(files, settings):
            pieces = Pieces.joined(
                read_bins(file, settings["split"], first, stop) for file in files
            ).sorted()
            shard.write(pieces.tokens, documents=pieces.places.size, masked=pieces.masked())
            columns = [pa.array(pieces.names()), pa.array(pieces.lengths)]
            names.write_table(pa.table(columns, schema=IDS_SCHEMA))
        entry = shard.close()
    mask: dict[Path, dict[str, Any]] = {shard.mask_path: {}} if entry.masked else {}
    figures = {"entry": entry.model_dump(mode="json", exclude_none=True)}
    return Product({path: {}, ids: {}, **mask}, figures)


def _portions(files: list[Path], settings: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield ranges of bins with at most `AT_A_TIME` tokens, or of one bin."""
    first, stop = int(settings["first"]), int(settings["stop"])
    counts = tokens_by_bin(files, str(settings["split"]))[first:stop]
    begin, held = first, 0
    for place, count in enumerate(counts.tolist(), start=first):
        if held and held + count > AT_A_TIME:
            yield begin, place
            begin, held = place, 0
        held += count
    yield begin, stop


def tokens_by_bin(files: list[Path], split: str) -> np.ndarray:
    """Return int64 (bins,): the tokens of each bin, in all files."""
    return sum(np.diff(bin_starts(file, split)[:, 1]) for file in files)  # type: ignore[return-value]
