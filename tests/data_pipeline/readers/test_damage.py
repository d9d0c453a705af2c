"""Damaged and hostile files: bounded in memory, read on after the damage, everything counted."""

import bz2
import gzip
import io
import json
import lzma
import time
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_pipeline.readers import streams
from data_pipeline.readers.record import MAX_RECORD_BYTES

LINES = [json.dumps({"text": f"text {number} " * 30}).encode() + b"\n" for number in range(300)]
DATA = b"".join(LINES)


def members(pack, size=50):
    """Return the lines packed into members of `size` lines."""
    return [pack(b"".join(LINES[start : start + size])) for start in range(0, 300, size)]


PACKS = {
    ".gz": (gzip.compress, "gzip"),
    ".zst": (zstandard.ZstdCompressor(write_checksum=True).compress, "zstd"),
    ".bz2": (bz2.compress, "bzip2"),
    ".xz": (lzma.compress, "xz"),
}


@pytest.mark.parametrize("suffix", PACKS)
def test_compressed_files_of_one_and_of_many_members(tmp_path, read, suffix):
    pack, _ = PACKS[suffix]
    (tmp_path / f"one.jsonl{suffix}").write_bytes(pack(DATA))
    (tmp_path / f"two.jsonl{suffix}").write_bytes(b"".join(members(pack)) + b"\0" * 700)
    found = read(tmp_path)
    assert found.skipped.counts == {}
    assert len(found.texts) == 600
    assert found.texts[:300] == found.texts[300:] == [json.loads(line)["text"] for line in LINES]


@pytest.mark.parametrize("suffix", PACKS)
def test_after_a_damaged_member_reading_goes_on(tmp_path, read, suffix):
    pack, name = PACKS[suffix]
    parts = members(pack)
    damaged = bytearray(parts[2])
    damaged[len(damaged) // 2 : len(damaged) // 2 + 8] = b"\xff" * 8
    (tmp_path / f"x.jsonl{suffix}").write_bytes(b"".join(parts[:2]) + damaged + b"".join(parts[3:]))
    found = read(tmp_path)
    texts = [json.loads(line)["text"] for line in LINES]
    assert found.texts[:100] == texts[:100]
    assert found.texts[-150:] == texts[150:]
    assert set(found.texts[100:-150]) <= set(texts[100:150])
    assert found.skipped.counts[f"damaged {name} data"] == 1
    assert found.skipped.examples[f"damaged {name} data"].startswith(f"{tmp_path}/x.jsonl")


@pytest.mark.parametrize("suffix", PACKS)
def test_a_truncated_file_is_told(tmp_path, read, suffix):
    pack, name = PACKS[suffix]
    parts = members(pack)
    (tmp_path / f"x.jsonl{suffix}").write_bytes(b"".join(parts)[: -len(parts[-1]) // 2])
    found = read(tmp_path)
    assert len(found.texts) >= 250
    assert found.skipped.counts[f"{name} data that ends too early"] == 1


def test_what_is_no_compressed_file(tmp_path, read):
    (tmp_path / "x.jsonl.gz").write_bytes(b"text" * 1000)
    (tmp_path / "empty.jsonl.gz").write_bytes(b"")
    found = read(tmp_path)
    assert found.texts == []
    assert found.skipped.counts == {"damaged gzip data": 1}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_bomb_is_left_in_bounded_memory(tmp_path, read, suffix, monkeypatch):
    monkeypatch.setattr(streams, "FREE_BYTES", 2**24)
    zeros = io.BytesIO()
    opened = (
        gzip.GzipFile(fileobj=zeros, mode="wb")
        if suffix == ".gz"
        else zstandard.ZstdCompressor(level=1).stream_writer(zeros, closefd=False)
    )
    with opened:
        for _ in range(100):
            opened.write(bytes(2**22))  # 400 MB in all
    (tmp_path / f"bomb.jsonl{suffix}").write_bytes(zeros.getvalue())
    (tmp_path / "good.jsonl").write_bytes(LINES[0])
    tracemalloc.start()
    found = read(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.texts) == 1
    assert "compressed file that gives too much" in found.skipped.counts
    assert peak < 3 * MAX_RECORD_BYTES


def test_a_line_without_end_is_skipped_in_bounded_memory(tmp_path, read):
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.write(LINES[0] + b'{"text": "')
        for _ in range(300):
            file.write(b"x" * 2**20)
        file.write(b'"}\n' + LINES[1])
    tracemalloc.start()
    found = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.texts) == 2
    assert found.skipped.counts == {"line too long": 1}
    assert found.skipped.examples == {"line too long": f"{path}:2"}
    assert peak < 3 * MAX_RECORD_BYTES


def test_a_large_text_is_read_in_pieces_and_a_large_page_is_not(tmp_path, read, monkeypatch):
    for module in ("text", "lines", "warc"):
        monkeypatch.setattr(f"data_pipeline.readers.{module}.MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(streams, "CHUNK_BYTES", 100)
    text = "".join(f"line {number} \u00e9\n" for number in range(500)) + "\u00e9" * 3000
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.html").write_text(text)
    found = read(tmp_path)
    assert "".join(found.texts) == text
    assert max(len(one.encode()) for one in found.texts) <= 1100
    assert [name.rpartition("#")[2] for name in found.names] == [
        str(number) for number in range(1, len(found.names) + 1)
    ]
    assert found.skipped.counts == {"file too large": 1}


def test_json_that_orjson_refuses_and_json_takes(tmp_path, read):
    (tmp_path / "x.jsonl").write_text(
        '{"text": "lone \\ud800", "score": NaN, "url": "u\\udfff"}\n{"text": "b", "url": 3}\n'
    )
    found = read(tmp_path)
    assert found.texts == ["lone \ufffd", "b"]
    assert found.documents[1].meta == {"url": 3}


def test_keys_and_meta_of_lines_and_rows(tmp_path, read):
    rows = [
        {"body": "one", "url": "u1", "score": 0.5, "list": [1], "n": None},
        {"body": None, "url": "u2", "score": 1.0, "list": [], "n": 7},
        {"body": "three", "url": None, "score": 2.0, "list": [], "n": 8},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    found = read(tmp_path, text_key="body", meta_keys=("url", "score", "list", "n", "absent"))
    assert found.texts == ["one", "three"] * 2
    assert [document.meta for document in found.documents] == [
        {"url": "u1", "score": 0.5},
        {"score": 2.0, "n": 8},
    ] * 2
    assert found.names == [
        f"{tmp_path}/{name}:{line}" for name in ("a.jsonl", "b.parquet") for line in (1, 3)
    ]
    assert found.skipped.counts == {"line without a `body`": 1, "row without a `body`": 1}


def test_damaged_parquet_files(tmp_path, read):
    rows = pa.table({"text": [f"text {number}" for number in range(1000)]})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=100)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[:-50])
    (tmp_path / "c.parquet").write_bytes(b"x" * 100)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "d.parquet")
    found = read(tmp_path)
    assert len(found.texts) == 1000
    assert found.skipped.counts == {
        "damaged Parquet file": 2,
        "Parquet file without a column `text`": 1,
    }


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_any_cut_of_a_file_is_read_in_time(tmp_path, read, cut):
    data = gzip.compress(DATA)[cut:]
    (tmp_path / "x.jsonl.gz").write_bytes(data[: len(data) * (cut + 1) // 61] or b"\x1f")
    began = time.perf_counter()
    found = read(tmp_path)
    assert time.perf_counter() - began < 20
    assert len(found.texts) < 300
    assert sum(found.skipped.counts.values()) >= 1


def test_small_shards_hold_every_document_once(tmp_path, read):
    (tmp_path / "x.jsonl").write_bytes(DATA)
    found = read(tmp_path, shard_bytes=5000)
    assert found.texts == [json.loads(line)["text"] for line in LINES]
