"""An index of a corpus that later ones are compared with: band keys, sets of n-grams and ids of its
documents, without their text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from data_pipeline.dedup.near.sets import Sets, as_bytes, as_texts
from data_pipeline.dedup.sorted_keys import sorted_table
from data_pipeline.storage.arrays import array_names, read_arrays
from data_pipeline.storage.whole import file_sha256
from maxlm.config.errors import UserError
from maxlm.config.pipeline.dedup.near_dedup import INDEX_LISTING
from maxlm.files import read_regular, write_whole


@dataclass(frozen=True)
class Signing:
    """How keys are made; only keys made alike can be compared."""

    ngram_words: int
    bands: int
    rows: int

    @property
    def tables(self) -> list[str]:
        """Names of the tables of band keys in a file."""
        return [f"band{band:03}" for band in range(self.bands)]

    def sorted_tables(self, rows: np.ndarray, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of all tables for rows and their keys, uint64 (bands, num_rows)."""
        tables: dict[str, np.ndarray] = {}
        for name, band in zip(self.tables, keys, strict=True):
            tables |= sorted_table(name, rows, band)
        return tables


def index_arrays(
    signing: Signing, keys: np.ndarray, sets: Sets, ids: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return the arrays of an index file for documents that have words, numbered from 0."""
    contents = {"bands": keys.T.copy(), "grams": sets.grams, "set_end": sets.ends}
    return signing.sorted_tables(np.arange(len(ids)), keys) | contents | {"id": as_bytes(ids)}


def read_sets(path: Path, rows: np.ndarray) -> tuple[np.ndarray, Sets, list[str]]:
    """Return bands, sets and ids of some rows of an index file."""
    arrays = read_arrays(path)
    ends = arrays["set_end"]
    begins = np.concatenate([[0], ends[:-1]])
    sizes = (ends - begins)[rows]
    new_ends = sizes.cumsum()
    places = np.arange(sizes.sum()) + (begins[rows] - (new_ends - sizes)).repeat(sizes)
    sets = Sets(arrays["grams"][places], new_ends)
    return arrays["bands"][rows], sets, as_texts(arrays["id"][rows])


def write_index(folder: Path, signing: Signing, files: Sequence[Path]) -> None:
    """Copy index files into a folder; its listing, without which it is no index, comes last.

    Raises:
      OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX_LISTING).unlink(missing_ok=True)
    names = [f"{place:06}.safetensors" for place in range(len(files))]
    for name, file in zip(names, files, strict=True):
        unfinished = folder / f"{name}.unfinished"
        shutil.copyfile(file, unfinished)
        unfinished.replace(folder / name)
    listing = {"format": 1, **asdict(signing), "files": len(files)}
    listing["sha256"] = [file_sha256(folder / name) for name in names]
    write_whole(folder / INDEX_LISTING, json.dumps(listing, indent=1).encode() + b"\n")


def index_files(folder: Path, signing: Signing) -> list[Path]:
    """Return the files of an index.

    Raises:
      UserError: there is none, or its keys were made in another way.
    """
    try:
        listing: dict[str, Any] = json.loads(read_regular(folder / INDEX_LISTING))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: no index of documents ({error}); give the folder that an earlier run's "
            "near_dedup wrote (its `index`)"
        ) from error
    ours = {"format": 1, **asdict(signing)}
    theirs = {name: listing.get(name) for name in ours}
    if theirs != ours:
        raise UserError(
            f"{folder}: an index made with {theirs} cannot be compared with {ours}; "
            "set ngram_words, bands and rows alike"
        )
    return [folder / f"{place:06}.safetensors" for place in range(int(listing["files"]))]


def check_index(folder: Path, signing: Signing) -> None:
    """Look for the files of an index, and open each without reading its arrays.

    Raises:
      UserError: there is no such index, or a file of it is not there or damaged.
    """
    for path in index_files(folder, signing):
        try:
            names = array_names(path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: cannot be read: {error}; bring the index's files back, or remove its folder "
                "from the setting"
            ) from None
        if "set_end" not in names:
            raise UserError(f"{path}: no file of an index; bring back the one that was there")
