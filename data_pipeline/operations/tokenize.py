"""Documents to tokenized pieces; before that, how many documents would be held out, and a sample of
texts that a tokenizer learns from.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_pipeline.documents import Document, origin_of
from data_pipeline.engine.isolation.watch import Watch
from data_pipeline.engine.task import Task
from data_pipeline.operations.product import Product
from data_pipeline.storage.arrays import write_arrays
from data_pipeline.storage.document_files import DocumentWriter, read_documents, read_origins
from data_pipeline.text.places import MASK, cut_spans, masked_spans, with_masked
from data_pipeline.tokens.masking import masked_tokens, token_spans
from data_pipeline.tokens.order import ORDERS, SPLITS, cut, order_place, split_place, training_place
from data_pipeline.tokens.pieces import Piece, Pieces
from maxlm.data.shards.index import smallest_dtype
from maxlm.data.shards.writer import as_stored
from maxlm.data.tokenizers import open_tokenizer

BATCH_CHARACTERS = 2_000_000
NOTHING = np.zeros(0, bool)


def count_places(task: Task, watch: Watch) -> Product:
    """Count a shard's documents, those below the threshold, and note the least and largest place."""
    del watch
    places = [split_place(origin) for origin in read_origins(task.paths[0])]
    figures = {
        "documents": len(places),
        "held_out": sum(place < task.settings["threshold"] for place in places),
        "least": min(places, default=None),
        "largest": max(places, default=None),
    }
    return Product({}, figures)


def sample_texts(task: Task, watch: Watch) -> Product:
    """Write the pieces of a split of a shard whose place in the order is below `settings.below`."""
    del watch
    path = task.folder / f"{task.name}.parquet"
    with DocumentWriter(path) as writer:
        for split, piece in _pieces(task):
            if split == task.settings["split"] and order_place(piece.id) < task.settings["below"]:
                writer.write(piece)
    return Product({path: {}}, {})


def tokenize(task: Task, watch: Watch) -> Product:
    """Write the pieces of a shard, tokenized and sorted, for both splits."""
    tokenizer = open_tokenizer(task.paths[1])
    dtype = np.dtype(smallest_dtype(tokenizer.vocab_size))
    found: dict[str, list[Piece]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for batch in _batches(_pieces(task)):
        watch.at(0)
        encoded = tokenizer.encode_all([piece.text for _, piece in batch])
        for (split, piece), ids in zip(batch, encoded, strict=True):
            tokens = as_stored(ids, tokenizer.bos_id, tokenizer.eos_id).astype(dtype)
            assert np.count_nonzero(tokens == tokenizer.bos_id) == 1, "BOS marks where pieces begin"
            # Held-out text stays in a random order: an evaluation may read its first part only.
            order = piece.meta if split == "train" else {}
            spans = masked_spans(piece.meta)
            masked = masked_tokens(tokenizer, piece.text, ids, spans) if spans else NOTHING
            # BOS stands in front of the tokens.
            found[split].append(
                Piece(training_place(piece.id, order), piece.id, tokens, 1 + token_spans(masked))
            )
            sizes[split] += len(piece.text.encode())
    watch.at_none()
    arrays: dict[str, np.ndarray] = {}
    figures = {}
    for split in SPLITS:
        pieces = Pieces.of(found.pop(split), tokenizer.vocab_size).sorted()
        arrays |= pieces.arrays(split, task.settings["bin_bits"])
        figures[split] = {
            "documents": pieces.places.size,
            "tokens": int(pieces.lengths.sum(dtype=np.int64)),
            "bytes": sizes[split],
            "masked_tokens": pieces.num_masked,
        }
    path = task.folder / f"{task.name}.safetensors"
    write_arrays(path, arrays)
    return Product({path: {}}, figures)


def _pieces(task: Task) -> Iterator[tuple[str, Document]]:
    """Yield the shard's documents, long ones in pieces, each with its split."""
    threshold, most = task.settings["threshold"], task.settings["max_document_bytes"]
    for document in read_documents(task.paths[0]):
        split = SPLITS[split_place(origin_of(document.id, document.meta)) < threshold]
        spans, begin = masked_spans(document.meta), 0
        bare = {key: value for key, value in document.meta.items() if key != MASK}
        for identity, text in cut(document.id, document.text, most):
            end = begin + len(text)
            piece = Document(identity, document.source, text, bare)
            yield split, with_masked(piece, cut_spans(spans, begin, end)) if spans else piece
            begin = end


def _batches(
    pieces: Iterator[tuple[str, Document]],
) -> Iterator[list[tuple[str, Document]]]:
    batch: list[tuple[str, Document]] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[1].text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def sample_limit(sample_bytes: float, text_bytes: float) -> int:
    """Return the place in the order below which pieces of so many bytes are expected."""
    return min(int(ORDERS * min(sample_bytes / max(text_bytes, 1), 1.0)), ORDERS)
