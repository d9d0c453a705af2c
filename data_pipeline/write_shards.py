"""Tokenize documents and write them as shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.reading import Document
from maxlm.data.shards import ShardWriter
from maxlm.data.tokenizer import Tokenizer

BATCH_CHARACTERS = 2_000_000
THREADS = 4  # documents encoded at a time; the result does not depend on it


@dataclass(frozen=True)
class Written:
    """What a folder of shards holds: `tokens` with BOS and EOS, `bytes` of UTF-8."""

    documents: int
    tokens: int
    bytes: int


def write_shards(
    folder: Path,
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    progress: Callable[[int], None] = lambda _: None,
) -> Written:
    """Write documents in their order; `progress` is told characters done."""
    tokens = 0
    with ShardWriter(
        folder,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        tokenizer=tokenizer.fingerprint,
    ) as writer:
        for batch in _batches(documents):
            for ids in tokenizer.encode_all(
                [document.text for document in batch], num_threads=THREADS
            ):
                tokens += writer.write_document(ids)
            progress(sum(len(document.text) for document in batch))
    return Written(
        len(documents), tokens, sum(len(document.text.encode()) for document in documents)
    )


def _batches(documents: Sequence[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
