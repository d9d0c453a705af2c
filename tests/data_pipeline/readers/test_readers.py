import json
import math
import os
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.readers import lines as lines_module
from maxlm.config.errors import UserError


def test_folders_are_searched_for_text_in_a_fixed_order(tmp_path, read):
    for name in ("b.txt", "a/z.md", "a/x.py", "c.bin", "a.txt", "d.TXT~"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    reading = read(tmp_path)
    assert reading.texts == ["a/x.py", "a/z.md", "a.txt", "b.txt"]
    assert reading.names == [(tmp_path / name).as_posix() for name in reading.texts]


def test_a_named_file_is_text_whatever_its_suffix(tmp_path, read):
    (tmp_path / "LICENSE").write_text("x")
    assert read(tmp_path / "LICENSE").texts == ["x"]


def test_text_that_is_hard_to_read(tmp_path, read):
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfbom")
    (tmp_path / "crlf.txt").write_bytes(b"a\r\nb\rc\n")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / "spaces.txt").write_bytes(b" \n\t ")
    (tmp_path / "surrogate.txt").write_bytes(b"\xed\xa0\x80")
    (tmp_path / "utf16.txt").write_bytes("text".encode("utf-16"))
    reading = read(tmp_path)
    assert reading.texts == ["bom", "a\nb\nc\n", "a\0b"]
    assert reading.skipped.counts == {"empty document": 2, "undecodable file": 3}


def test_python_files_declare_their_encoding(tmp_path, read):
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9\n")
    (tmp_path / "unknown.py").write_bytes(b"# -*- coding: klingon -*-\n")
    (tmp_path / "undeclared.py").write_bytes(b"# \xe9\n")
    (tmp_path / "two.py").write_bytes(b"\xef\xbb\xbf# -*- coding: latin-1 -*-\n")
    reading = read(tmp_path)
    assert reading.texts == ["# -*- coding: latin-1 -*-\n# \u00e9\n"]
    assert reading.skipped.counts == {"undecodable file": 3}


def test_json_lines(tmp_path, read):
    lines = [
        json.dumps({"text": "one", "id": 1}),
        "",
        json.dumps({"text": "lone \ud800 surrogate"}),
        '{"text": "pair \\ud83d\\ude00"}',
        json.dumps({"text": ""}),
        json.dumps({"text": 5}),
        json.dumps({"body": "x"}),
        json.dumps(["text"]),
        "not json",
        "[" * 100_000,
        "1" * 5000,
        '{"text": "cut off',
    ]
    path = tmp_path / "lines.jsonl"
    path.write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}\n{"text": "last"}')
    reading = read(path)
    assert reading.texts == ["one", "lone \ufffd surrogate", "pair \U0001f600", "last"]
    assert reading.names[0] == f"{path.as_posix()}:1"
    assert reading.skipped.counts == {
        "empty document": 1,
        "line without a `text`": 3,
        "line that is not JSON": 4,
        "line that is not UTF-8": 1,
    }
    assert reading.skipped.examples["line that is not UTF-8"] == f"{path.as_posix()}:13"


def test_line_that_is_too_long_is_skipped(tmp_path, monkeypatch, read):
    monkeypatch.setattr(lines_module, "MAX_RECORD_BYTES", 64)
    lines = [json.dumps({"text": "x" * size}) for size in (10, 200, 52, 53, 20)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines) + "\n")
    reading = read(tmp_path)
    assert [len(text) for text in reading.texts] == [10, 52, 20]
    assert reading.skipped.counts == {"line too long": 2}


def test_numbers_that_json_cannot_hold_are_none(tmp_path, read):
    numbers = ["NaN", "-Infinity", "1e400", "1" + "0" * 400, "1.5", "-7", str(2**63), "true"]
    lines = "".join(f'{{"text": "{n}", "score": {one}}}\n' for n, one in enumerate(numbers))
    (tmp_path / "a.jsonl").write_text(lines)
    columns = {"text": ["p", "q", "r"], "score": [math.nan, 2.5, None]}  # as pandas has no value
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    reading = read(tmp_path, meta_keys=("score",))
    scores = {one.text: one.meta["score"] for one in reading.documents if one.meta}
    assert scores == {"4": 1.5, "5": -7, "6": 2.0**63, "7": True, "q": 2.5}
    assert len(reading.documents) == 11
    assert reading.figures["values"]["score"]["2.5"] == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_counted(tmp_path, read):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("x")
    (tmp_path / "b.txt").chmod(0)
    assert read(tmp_path).skipped.counts == {"unreadable file": 1}


def test_nothing_to_read(tmp_path, read):
    with pytest.raises(UserError, match=r"no such file or folder"):
        read(tmp_path / "nothing")
    assert read(tmp_path).documents == []
    with pytest.raises(UserError, match=r"raw\.paths is empty"):
        read()


def test_standard_library_is_read_without_what_was_installed_or_tests(read):
    reading = read(kind="python_stdlib")
    names = reading.names
    assert {"argparse.py", "asyncio/events.py", "json/decoder.py"} <= set(names)
    assert not [
        name for name in names if {"site-packages", "test", "tests"} & set(Path(name).parts)
    ]
    assert len(names) == len(set(names))
    root = Path(sysconfig.get_paths()["stdlib"])
    by_name = dict(zip(names, reading.texts, strict=True))
    assert by_name["argparse.py"] == (root / "argparse.py").read_text(encoding="utf-8")
    assert 5e6 < sum(map(len, by_name.values())) < 40e6


def test_names_that_differ_in_undecodable_bytes_are_two(tmp_path, read):
    # The last is how U+FFFD is written.
    for name in (b"\xff.txt", b"\xfe.txt", b"\xef\xbf\xbd.txt"):
        (Path(os.fsdecode(bytes(tmp_path / "x")[:-1] + name))).write_text("x")
    found = read(tmp_path)
    assert len(found.names) == len(set(found.names)) == 3


def test_lines_are_numbered_as_an_editor_numbers_them(tmp_path, read):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n\n{"text": "y"}\n{}\n')
    reading = read(tmp_path)
    assert [name.rpartition(":")[2] for name in reading.names] == ["1", "4"]
    assert reading.skipped.examples == {
        "line without a `text`": f"{(tmp_path / 'a.jsonl').as_posix()}:5"
    }


def test_documents_of_a_source_have_its_licence_unless_they_name_one(read, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n{"text": "b", "license": "MIT"}\n')
    (tmp_path / "more.txt").write_text("c")
    found = read(tmp_path, licence="CC0-1.0").documents
    assert [(one.text, one.meta.get("licence"), one.meta.get("license")) for one in found] == [
        ("c", "CC0-1.0", None),
        ("a", "CC0-1.0", None),
        ("b", None, "MIT"),
    ]
    # Rules for code know a file's language by its name.
    assert found[0].meta["path"].endswith("/more.txt")
    assert "path" not in found[1].meta
