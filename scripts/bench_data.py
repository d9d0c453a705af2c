"""Measure how fast random windows of tokens are read: shard formats side by side, then the whole
dataset.

.venv/bin/python scripts/bench_data.py            (the Parquet rows need pyarrow: scripts/setup data)

Every candidate holds the same tokens and is asked for the same windows, in one process and one
thread. The files were just written, so this is the cost of the format, not of the disk.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipeline.tokenizers.sentencepiece import train_sentencepiece
from maxlm.config.pipeline.tokenizer import BpeConfig
from maxlm.config.schema import DataConfig
from maxlm.data.dataset import Dataset, build_dataset
from maxlm.data.shards import ShardWriter, TokenShards
from maxlm.data.tokenizers import Tokenizer, open_tokenizer

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    pa = None

Read = Callable[[int], np.ndarray]
SECONDS = 3.0  # per measurement
ROW_GROUP = 64  # windows per Parquet row group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--folder", type=Path, help="where to write the files (default: a temporary folder)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        bench(Path(folder), arguments.tokens, arguments.sequence_length, arguments.batch_size)


def bench(folder: Path, num_tokens: int, length: int, batch_size: int) -> None:
    print(
        f"{os.cpu_count()} CPUs, Python {platform.python_version()}, grain {grain.__version__}",
        end="",
    )
    print(f", pyarrow {pa.__version__}" if pa else ", no pyarrow: no Parquet")
    tokenizer = write_tokenizer(folder / "tokenizer.model")
    for name in ("a", "b"):
        write_shards(folder / name, tokenizer, num_tokens // (1 if name == "a" else 4))
    shards = TokenShards(folder / "a/train")
    flat = shards.read(0, shards.num_tokens).astype(np.uint16)
    windows = flat[: flat.size // length * length].reshape(-1, length)
    print(f"{flat.size:,} tokens in {len(windows):,} windows of {length}\n")
    print("| format | bytes per token | windows/s | M tokens/s | notices damage |")
    print("|---|---|---|---|---|")
    order = np.random.default_rng(0).permutation(len(windows)).tolist()
    for name, notices, files, read in candidates(folder, flat, windows, shards):
        size = sum(path.stat().st_size for path in files) / flat.size
        check(read, windows)
        per_second = rate(read, order)
        print(
            f"| {name} | {size:.2f} | {per_second:,.0f} | {per_second * length / 1e6:.1f} | {notices} |"
        )
    print("\n| whole dataset | rows/s | M tokens/s |")
    print("|---|---|---|")
    for label, weights in {
        "one source": {"a": 1.0},
        "two sources, 3 : 1": {"a": 3.0, "b": 1.0},
    }.items():
        rows = dataset_rate(open_dataset(folder, weights, length, batch_size))
        print(
            f"| {label}: shuffle, mix, checksums, packing fields | {rows:,.0f} | {rows * length / 1e6:.1f} |"
        )


def candidates(
    folder: Path, flat: np.ndarray, windows: np.ndarray, shards: TokenShards
) -> list[tuple[str, str, list[Path], Read]]:
    length = windows.shape[1]
    flat_path = folder / "flat.bin"
    flat.tofile(flat_path)
    mapped = np.memmap(flat_path, np.uint16, "r")
    shard_files = [shards.folder / shard.file for shard in shards.index.shards]
    found: list[tuple[str, str, list[Path], Read]] = [
        (
            "flat file, memory-mapped",
            "no",
            [flat_path],
            lambda i: mapped[i * length : (i + 1) * length].astype(np.int32),
        ),
        (
            "flat file in checksummed pages (ours)",
            "yes",
            shard_files,
            lambda i: shards.read(i * length, length),
        ),
    ]
    for label, options in {
        "zstd": "group_size:1",
        "uncompressed": "group_size:1,uncompressed",
    }.items():
        path = folder / f"{label}.array_record"
        writer = ArrayRecordWriter(str(path), options)
        for window in windows:
            writer.write(window.tobytes())
        writer.close()
        records = grain.sources.ArrayRecordDataSource(str(path))
        found.append(
            (
                f"ArrayRecord, one window a record, {label}",
                "yes",
                [path],
                array_record_reader(records),
            )
        )
    if pa:
        found += [
            parquet(folder / f"{label}.parquet", windows, label) for label in ("zstd", "none")
        ]
    return found


def array_record_reader(records: grain.sources.ArrayRecordDataSource) -> Read:
    return lambda i: np.frombuffer(records[i], np.uint16).astype(np.int32)


def parquet(path: Path, windows: np.ndarray, compression: str) -> tuple[str, str, list[Path], Read]:
    length = windows.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(windows.reshape(-1)), length)
    pq.write_table(
        pa.table({"tokens": column}),
        path,
        row_group_size=ROW_GROUP,
        compression=compression,
        use_dictionary=False,
        write_page_checksum=True,
    )
    file = pq.ParquetFile(path, page_checksum_verification=True)

    def read(i: int) -> np.ndarray:
        group = file.read_row_group(i // ROW_GROUP, use_threads=False)["tokens"].combine_chunks()
        first = i % ROW_GROUP * length
        return np.asarray(group.flatten())[first : first + length].astype(np.int32)

    return f"Parquet, {ROW_GROUP} windows a row group, {compression}", "yes", [path], read


def rate(read: Read, order: list[int]) -> float:
    """Return windows per second."""
    began = time.perf_counter()
    done = 0
    while (seconds := time.perf_counter() - began) < SECONDS and done < len(order):
        for index in order[done : done + 16]:
            read(index)
        done += 16
    return done / seconds


def check(read: Read, windows: np.ndarray) -> None:
    for index in (0, len(windows) // 2, len(windows) - 1):
        assert (read(index) == windows[index]).all()


def dataset_rate(dataset: Dataset) -> float:
    """Return rows per second of whole batches."""
    began = time.perf_counter()
    step = 0
    while (seconds := time.perf_counter() - began) < 2 * SECONDS:
        dataset.rows(step * dataset.batch_size, (step + 1) * dataset.batch_size)
        step += 1
    return step * dataset.batch_size / seconds


def open_dataset(folder: Path, weights: dict[str, float], length: int, batch_size: int) -> Dataset:
    sources = {
        name: {"path": str(folder / name), "weight": weight} for name, weight in weights.items()
    }
    data = {
        "sources": sources,
        "tokenizer": str(folder / "tokenizer.model"),
        "sequence_length": length,
    }
    return build_dataset(
        DataConfig.model_validate(data), seed=0, batch_size=batch_size, split="train"
    )


def write_tokenizer(path: Path) -> Tokenizer:
    text = "".join(f"word{number % 977} stands here\n" for number in range(20_000))
    path.write_bytes(train_sentencepiece(BpeConfig(), [text], 4096)["tokenizer.model"])
    return open_tokenizer(path)


def write_shards(folder: Path, tokenizer: Tokenizer, num_tokens: int) -> None:
    """Write documents of 2 to 4,000 tokens, whose frequencies fall off as in text."""
    generator = np.random.default_rng(0)
    ranks = np.arange(1, tokenizer.vocab_size - 2)
    chances = (1 / ranks) / (1 / ranks).sum()
    tokens = generator.choice(ranks + 2, num_tokens, p=chances).astype(np.int64)
    with ShardWriter(
        folder / "train",
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        tokenizer=tokenizer.fingerprint,
    ) as writer:
        start = 0
        while start < num_tokens:
            size = int(generator.integers(0, 4000))
            writer.write_document(tokens[start : start + size])
            start += size


if __name__ == "__main__":
    main()
