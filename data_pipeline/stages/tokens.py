"""The last stages: who is held out, a tokenizer's sample, tokenized pieces, token shards."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.documents import Document
from data_pipeline.engine.task import Record, Task
from data_pipeline.operations.tokenize import sample_limit
from data_pipeline.operations.write_shard import tokens_by_bin
from data_pipeline.stages.shards import DocumentShard, Workshop
from data_pipeline.storage.document_files import read_documents
from data_pipeline.tokens.order import PLACES, SPLITS, order_place, threshold_of
from maxlm.config.errors import UserError
from maxlm.config.pipeline.raw import RawTextConfig
from maxlm.data.shards.document_ids import ids_name
from maxlm.data.shards.index import (
    INDEX_NAME,
    ShardEntry,
    ShardIndex,
    smallest_dtype,
    tokens_per_page,
)
from maxlm.data.shards.masks import mask_name, mask_pages
from maxlm.data.shards.writer import shard_name, write_index
from maxlm.data.tokenizers import Tokenizer
from maxlm.files import write_whole

TOKENIZE = ("data_pipeline.operations.tokenize",)
WRITE = ("data_pipeline.operations.write_shard",)
BIN_TOKENS = 2**22  # at most, about: they are sorted in memory
MOST_BIN_BITS = 16
RECORD = "record-"


@dataclass(frozen=True)
class SourceDocuments:
    """The documents of a source that are left, and how they are split and cut."""

    name: str
    raw: RawTextConfig
    shards: Sequence[DocumentShard]
    threshold: int

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(shard.text_bytes for shard in self.shards)

    @property
    def settings(self) -> dict[str, Any]:
        """What the tasks must know to split and cut alike."""
        return {
            "threshold": self.threshold,
            "max_document_bytes": self.raw.max_document_bytes,
        }


class TooFewDocumentsError(UserError):
    """A source's documents that are left cannot be split."""


def hold_out(
    name: str, raw: RawTextConfig, shards: Sequence[DocumentShard], workshop: Workshop
) -> SourceDocuments:
    """Decide which documents of a source are for validation: at least one, and not all.

    Raises:
      TooFewDocumentsError: there are fewer than two documents.
    """
    threshold = threshold_of(raw.validation_fraction)
    tasks = _per_shard("count_places", name, shards, {"threshold": threshold}, workshop)
    sizes = {task.name: (shard.documents, 0) for task, shard in zip(tasks, shards, strict=True)}
    records = workshop.finish(f"{name}: split", tasks, lambda task: sizes[task.name])
    counts = [record.figures for record in records if record.figures["documents"]]
    documents = sum(count["documents"] for count in counts)
    least = min((count["least"] for count in counts), default=0)
    largest = max((count["largest"] for count in counts), default=0)
    if least == largest:
        raise TooFewDocumentsError(
            f"data.sources.{name}.raw: {'only one document is' if documents else 'no document is'} left of what was "
            "read, and two are needed, for training and for validation (pieces of one document, and what was made of "
            "it, stay together); give "
            "more files in raw.paths, or its texts as lines of a .jsonl file, or fewer data.pipeline.steps"
        )
    held_out = sum(count["held_out"] for count in counts)
    if not held_out:  # few documents: one of either kind
        threshold = least + 1
    elif held_out == documents:
        threshold = largest
    return SourceDocuments(name, raw, shards, threshold)


def sample_of(
    source: SourceDocuments, size: float, workshop: Workshop, *, split: str = "train"
) -> Iterator[Document]:
    """Return pieces of about `size` bytes of a split of a source, in their order; at least one if
    there is any.
    """
    held_out = source.threshold / PLACES
    share = held_out if split == "validation" else 1 - held_out
    below = sample_limit(1.2 * size, source.text_bytes * share)
    settings = {**source.settings, "below": below, "split": split}
    place = f"{source.name}-{split}"
    tasks = _per_shard("sample_texts", place, source.shards, settings, workshop)
    sizes = {
        task.name: (shard.documents, shard.text_bytes)
        for task, shard in zip(tasks, source.shards, strict=True)
    }
    records = workshop.finish(
        f"{source.name}: sample {split}", tasks, lambda task: sizes[task.name]
    )
    pieces = [piece for record in records for piece in read_documents(record.outputs[0].path)]
    return iter(sorted(pieces, key=lambda piece: order_place(piece.id)))


def tokenize(source: SourceDocuments, tokenizer: Tokenizer, workshop: Workshop) -> list[Record]:
    """Tokenize a source's documents; return the records of the files of pieces."""
    most = min(BIN_TOKENS, max(workshop.shard_tokens // 16, 1))
    bits = math.ceil(math.log2(max(source.text_bytes / most, 1)))
    settings = {**source.settings, "bin_bits": min(bits, MOST_BIN_BITS)}
    tasks = [
        Task(
            task.operation,
            task.modules,
            task.folder,
            task.name,
            task.settings,
            (*task.inputs, (tokenizer.path, tokenizer.fingerprint)),
        )
        for task in _per_shard("tokenize", source.name, source.shards, settings, workshop)
    ]
    sizes = {
        task.name: (shard.documents, shard.text_bytes)
        for task, shard in zip(tasks, source.shards, strict=True)
    }
    return workshop.finish(f"{source.name}: tokenize", tasks, lambda task: sizes[task.name])


def write_shards(
    source: str,
    split: str,
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    folder: Path,
    workshop: Workshop,
) -> ShardIndex:
    """Write the token shards of a split into a folder, and its index."""
    files = [record.outputs[0] for record in records]
    listing = workshop.folder / "tokenize" / f"{source}.files.json"
    write_whole(listing, json.dumps([str(file.path) for file in files]).encode())
    known = hashlib.sha256("\n".join(file.sha256 for file in files).encode()).hexdigest()
    per_page = tokens_per_page(smallest_dtype(tokenizer.vocab_size))
    tasks, page, mask_page = [], 0, 0
    for number, (first, stop, tokens) in enumerate(
        _ranges([file.path for file in files], split, workshop.shard_tokens)
    ):
        settings = {
            "split": split,
            "file": shard_name(number),
            "first": first,
            "stop": stop,
            "first_page": page,
            "first_mask_page": mask_page,
            "vocab_size": tokenizer.vocab_size,
        }
        name = f"{RECORD}{number:05d}"
        tasks.append(Task("write_shard", WRITE, folder, name, settings, ((listing, known),)))
        page += -(-tokens // per_page)
        mask_page += mask_pages(tokens)
    folder.mkdir(parents=True, exist_ok=True)
    written = workshop.finish(f"{source}: write {split}", tasks, lambda _: (0, 0))
    entries = [ShardEntry.model_validate(record.figures["entry"]) for record in written]
    return write_index(
        folder,
        entries,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        tokenizer=tokenizer.fingerprint,
    )


def leave_only_shards(folder: Path, index: ShardIndex) -> None:
    """Remove the records of finished tasks, and what an earlier try with other settings has left."""
    shards = {shard.file for shard in index.shards}
    masks = {mask_name(shard.file) for shard in index.shards if shard.masked}
    wanted = {INDEX_NAME, *shards, *map(ids_name, shards), *masks}
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()


def totals(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """Return documents, tokens, bytes and tokens that are not learned of each split."""
    return {
        split: {
            name: sum(record.figures[split][name] for record in records)
            for name in ("documents", "tokens", "bytes", "masked_tokens")
        }
        for split in SPLITS
    }


def _ranges(files: list[Path], split: str, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first bin, bin after the last, tokens) of each shard."""
    counts = tokens_by_bin(files, split)
    begin, held = 0, 0
    for place, count in enumerate(np.asarray(counts).tolist(), start=1):
        held += count
        if held >= size or (held and place == len(counts)):
            yield begin, place, held
            begin, held = place, 0


def _per_shard(
    operation: str,
    source: str,
    shards: Sequence[DocumentShard],
    settings: dict[str, Any],
    workshop: Workshop,
) -> list[Task]:
    folder = workshop.folder / operation / source
    return [
        Task(
            operation,
            TOKENIZE,
            folder,
            f"{number:06d}",
            settings,
            ((shard.path, shard.sha256),),
        )
        for number, shard in enumerate(shards)
    ]
