"""Read a checkpoint back that was just written, and compare it with what is still known of it.

Off the training thread and without a word between processes: each reads blocks that it wrote, in
plain host memory, and knows their fingerprints from its own devices.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import tensorstore as ts

from maxlm.checkpoint import layout, leaves
from maxlm.checkpoint.fingerprint import Block, fingerprint_values
from maxlm.files import flush_file, flush_folder

# What a process reads of each checkpoint where a sample is enough.
SAMPLE_BYTES = 128 * 2**20
SAMPLE_BLOCKS = 32


class Written(NamedTuple):
    """What this process knows of a checkpoint that it has written.

    Attributes:
        step: of the checkpoint.
        content: of its record file, sealed.
        blocks: by the name of their array, those that this process was the first to hold.
    """

    step: int
    content: dict[str, Any]
    blocks: dict[str, list[Block]]

    @property
    def manifest(self) -> leaves.Manifest:
        """What is said of the arrays of all processes."""
        manifest: leaves.Manifest = self.content["leaves"]
        return manifest


def read_back(path: Path, written: Written, extent: Literal["sample", "all", "none"]) -> int:
    """Compare the checkpoint in `path` with what was written, and return how many blocks were read.

    Its files and its name are on the disk then, not in memory alone. Process 0 also reads the
    record, and the shape, dtype and list of chunks of every array.

    Args:
        path: of the checkpoint.
        written: what it must be.
        extent: read some of the blocks, all of them, or nothing.

    Raises:
        DamagedError: it is another; the text says what.
        OSError: it cannot be flushed.
    """
    _flush(path)
    if extent == "none":
        return 0
    if jax.process_index() == 0:
        _check_record(path, written)
        _check_structure(path / layout.STATE, written.manifest)
    blocks = [(name, block) for name, part in written.blocks.items() for block in part]
    chosen = blocks if extent == "all" else _sample(blocks, seed=written.step)
    for name, block in chosen:
        entry = written.manifest[name]
        with _reading(name):
            array = _start_to_open(path / layout.STATE, name).result()
            values = array[block.place].read().result()
        found = fingerprint_values(values, block.place, tuple(entry["shape"]))
        if found != block.fingerprint:
            raise layout.DamagedError(
                f"read back, the array {name} is not what was written (at {_spelt(block.place)})"
            )
    return len(chosen)


def _sample(blocks: list[tuple[str, Block]], *, seed: int) -> list[tuple[str, Block]]:
    """Choose other blocks for each seed, up to a number and a size; the smallest if none fits."""
    if not blocks:
        return []
    order = random.Random(seed).sample(blocks, len(blocks))
    small = [item for item in order if item[1].nbytes <= SAMPLE_BYTES][:SAMPLE_BLOCKS]
    ends = itertools.accumulate(block.nbytes for _, block in small)
    chosen = [item for item, end in zip(small, ends, strict=True) if end <= SAMPLE_BYTES]
    return chosen or [min(blocks, key=lambda item: item[1].nbytes)]


def _flush(path: Path) -> None:
    """Put files and names on the disk, and forget what memory keeps of them."""
    first, own = jax.process_index() == 0, f"ocdbt.process_{jax.process_index()}"
    for folder, _, names in os.walk(path, topdown=False):
        if first or own in folder:  # the first process's flush does not empty the others' memory
            for name in names:
                flush_file(Path(folder, name))
        if first:
            flush_folder(Path(folder))
    if first:
        flush_folder(path.parent)


def _check_record(path: Path, written: Written) -> None:
    found = layout.read_sealed(path)
    differing = [name for name in found if found[name] != written.content[name]]
    if differing:
        raise layout.DamagedError(
            f"read back, the record is not what was written: {', '.join(differing)}"
        )


def _check_structure(path: Path, manifest: leaves.Manifest) -> None:
    """Check that every array is there with its shape, its dtype and all of its chunks."""
    with _reading("the list of chunks"):
        keys = ts.KvStore.open(_store(path)).result().list().result()
    found = Counter(key.decode().rpartition("/")[0] for key in keys)
    opened = {name: _start_to_open(path, name) for name in manifest}
    for name, entry in manifest.items():
        with _reading(name):
            array = opened[name].result()
        chunks = _count_chunks(array)
        saved = list(array.shape), array.dtype.name, found[name] - 1  # `.zarray` is beside them
        if saved != (entry["shape"], entry["dtype"], chunks):
            raise layout.DamagedError(
                f"read back, the array {name} is {saved[1]}{saved[0]} with {saved[2]} of {chunks} chunks"
            )


def _count_chunks(array: ts.TensorStore) -> int:
    each = array.chunk_layout.write_chunk.shape or ()  # none of a scalar
    counts: list[int] = [
        -(-size // (chunk or 1)) for size, chunk in zip(array.shape, each, strict=True)
    ]
    return math.prod(counts)


def _store(path: Path, name: str = "") -> dict[str, Any]:
    base = {"driver": "file", "path": f"{path}/"}
    return {"driver": "ocdbt", "base": base, "path": f"{name}/" if name else ""}


def _start_to_open(path: Path, name: str) -> ts.Future[ts.TensorStore]:
    return ts.open({"driver": "zarr", "kvstore": _store(path, name)}, open=True, read=True)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Say of any error in the block that `what` could not be read back."""
    try:
        yield
    except Exception as error:  # tensorstore raises nearly any kind for a damaged file
        cause = textwrap.shorten(f"{type(error).__name__}: {error}", layout.CAUSE_LENGTH)
        raise layout.DamagedError(f"{what} cannot be read back: {cause}") from error


def _spelt(place: tuple[slice, ...]) -> str:
    """Return slices as Python writes them."""
    parts = (
        f"{'' if part.start is None else part.start}:{'' if part.stop is None else part.stop}"
        for part in place
    )
    return f"[{', '.join(parts)}]"
