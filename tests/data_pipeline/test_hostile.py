"""Everything hostile at once, through every step, in processes whose memory and time are limited: the
good documents come out, and every other one is counted.
"""

import gzip
import io
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from data_pipeline.inspection.corpus import Corpus
from data_pipeline.prepare import prepare
from data_pipeline.report import Report
from data_pipeline.steps import STEPS as KINDS
from maxlm.cli import main

GOOD = 30
WORD, ITEM = (
    "frobnicator",
    "how many words of this long question does every hostile page repeat for ever",
)
CODE = {"max_avg_line_length": 200}  # what is good here is prose
STEPS = [
    {"kind": "sample", "fraction": 1.0},
    {"kind": "extract"},
    {"kind": "url"},
    {"kind": "licence", "missing": "keep"},
    {"kind": "language", "threshold": 0.0},
    {
        "kind": "heuristics",
        "rules": [
            *("gopher_repetition", "c4", "gopher_quality", "fineweb", "refinedweb"),
            {"kind": "redpajama_code", **CODE},
            {"kind": "starcoder", **CODE},
        ],
    },
    {"kind": "pii"},
    {"kind": "exact_dedup", "unit": "line", "min_words": 5},
    {"kind": "exact_dedup"},
    {"kind": "near_dedup"},
    {"kind": "substring_dedup"},
    {
        "kind": "toxicity",
        "lexicon": {"entries": [WORD, "!!"]},
        "max_count": 10**6,
        "model": "TOXIC",
    },
    {
        "kind": "rewrite",
        "checkpoint": {"path": "PUBLISHED"},
        "templates": [{"name": "say", "prompts": ["{text}: "]}],
        "max_source_tokens": 16,
        "max_tokens": 8,
        "batch": 4,
    },
    {"kind": "decontaminate", "benchmarks": {"quiz": ["BENCHMARK"]}, "action": "mask"},
    {"kind": "classifier", "model": "MODEL", "threshold": None, "score": "quality"},
    {"kind": "perplexity", "model": "NGRAMS", "keep": ["head", "middle", "tail"]},
    {"kind": "top_fraction", "score": "quality", "fraction": 0.99},
    {"kind": "buckets", "score": "perplexity", "keep": ["head", "middle", "tail"]},
    {"kind": "curriculum", "score": "quality", "buckets": 3},
]
DOCUMENTS = {
    "attributes": "<html><a " + "x=1 " * 100_000 + ">",
    "nesting": "<html>" + "<div>" * 100_000,
    "formatting": "<html>" + "<b a=1><p>" * 50_000,
    "unclosed": "<html>" + "<!--" * 100_000,
    "length": "<html>" + "<p>text " * 1_000_000,
    "marks": "e" + "\u0301\u0323" * 50_000,
    "zeroes": "\x00" * 100_000,
    "surrogates": "\ud800\udfff" * 1000,
    "mojibake": "\u00c3\u00a9\u00e2\u201a\u00ac" * 20_000,
    "space": " " * 1_000_000 + "x",
    "digits": "1" * 1_000_000,
    "addresses": "a@" * 200_000,
    "lines": "a\n" * 500_000,
    "words": "same words again. " * 50_000,
    "brackets": "[" * 200_000,
    "turned": "\u202e" * 1000,
    "toxic": f"{WORD}!! " * 50_000,
    "questions": f"{ITEM}. " * 10_000,
    "licences": "SPDX-License-Identifier: " + "(" * 100_000,
    "ideographs": "\u4f60\u597d" * 200_000,
}


def good_text(number):
    generator = random.Random(number)
    words = [f"{generator.choice('bcdfg')}{generator.choice('aeiou')}{n}" for n in range(400)]
    generator.shuffle(words)
    lines = [" ".join(words[start : start + 20]) for start in range(0, 400, 20)]
    return "".join(f"With the {line} of it.\n" for line in lines)


def packed(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def write_corpus(folder, *, line_bytes, bomb_bytes):
    """Write good documents among what no reader should trust."""
    good = [packed(good_text(number)) for number in range(GOOD)]
    (folder / "good.jsonl").write_bytes(b"".join(good[:20]))
    (folder / "hostile.jsonl").write_bytes(packed(*DOCUMENTS.values()))
    for name in ("attributes", "nesting", "length"):
        (folder / f"{name}.html").write_text(DOCUMENTS[name])
    damaged = bytearray(gzip.compress(b"".join(good[20:22]) * 50))
    damaged[len(damaged) // 2] ^= 255
    members = [gzip.compress(good[22]), bytes(damaged), gzip.compress(good[23])]
    (folder / "damaged.jsonl.gz").write_bytes(b"".join(members))
    with gzip.open(folder / "bomb.jsonl.gz", "wb") as bomb:
        for _ in range(bomb_bytes // 2**22):
            bomb.write(bytes(2**22))
    with (folder / "line.jsonl").open("wb") as file:
        file.write(good[24] + b'{"text": "')
        for _ in range(line_bytes // 2**20):
            file.write(b"x" * 2**20)
        file.write(b'"}\n' + good[25])
    (folder / "broken.jsonl").write_bytes(b'{"text": \n[]\n"text"\n{}\n\xff\xfe\n' + good[26])
    nested = b'{"a":' * 50_000
    (folder / "nested.jsonl").write_bytes(nested + b"\n" + good[27])
    record = (
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 99999\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
    )
    (folder / "cut.warc").write_bytes(record)
    (folder / "noise.warc.gz").write_bytes(random.Random(0).randbytes(100_000))
    (folder / "empty.warc").write_bytes(b"")
    (folder / "noise.parquet").write_bytes(b"PAR1" + bytes(1000) + b"PAR1")
    (folder / "last.jsonl").write_bytes(b"".join(good[28:]))
    return {good_text(number).strip() for number in range(GOOD) if number not in (20, 21)}


def steps_with_files(folder, published):
    """Return the steps, with the files that they need: models of good and of hostile texts, a
    benchmark, a model that writes.
    """
    files = {
        "MODEL": "good.classifier",
        "TOXIC": "toxic.classifier",
        "NGRAMS": "good.ngrams",
        "BENCHMARK": "quiz.jsonl",
    }
    for name in ("good", "bad"):
        (folder / name).mkdir()
    for number in range(150):
        (folder / f"good/{number}.txt").write_text(good_text(1000 + number))
        words = random.Random(number).choices(
            ["again", "page", "x=", "a@", "buy", "1111", "now"], k=100
        )
        (folder / f"bad/{number}.txt").write_text(" ".join(words))
    good, bad = str(folder / "good"), str(folder / "bad")
    outputs = {name: str(folder / file) for name, file in files.items()}
    for one, other, name in ((good, bad, "MODEL"), (bad, good, "TOXIC")):
        output = ["--bits", "14", "--output", outputs[name]]
        assert main(["data", "train-classifier", one, other, *output]) == 0
    ngrams = ["--order", "2", "--held-out", "0.2", "--output", outputs["NGRAMS"]]
    assert main(["data", "train-ngrams", good, *ngrams]) == 0
    Path(outputs["BENCHMARK"]).write_bytes(packed(ITEM))
    text = json.dumps(STEPS)
    for name, path in {**outputs, "PUBLISHED": str(published)}.items():
        text = text.replace(f'"{name}"', json.dumps(path))
    return json.loads(text)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "sizes",
    [
        {"line_bytes": 70 * 2**20, "bomb_bytes": 2**22},
        pytest.param({"line_bytes": 2**30, "bomb_bytes": 2**30}, marks=pytest.mark.slow),
    ],
    ids=["small", "large"],
)
def test_good_documents_come_out_and_every_other_one_is_counted(
    sizes, published, raw, run_config, tmp_path
):
    for path in raw.iterdir():
        path.unlink()
    good = write_corpus(raw, **sizes)
    engine = {"kind": "local", "workers": 2, "memory_mb": 512, "document_seconds": 20.0}
    steps = steps_with_files(tmp_path, published)
    pipeline = {"engine": engine, "steps": steps, "work_dir": str(tmp_path / "work")}
    config = run_config(pipeline=pipeline, vocab_size=600, shuffle="none")
    prepare(config, force=False, report=Report(Console(file=io.StringIO())))
    corpus = Corpus(tmp_path / "out/text")
    texts = {text for _, text in corpus.texts(corpus.documents())}
    assert good <= texts
    assert {step["kind"] for step in steps} == KINDS.keys()
    report, dropped = corpus.report, pq.read_table(corpus.folder / "dropped.parquet")
    for step in report["steps"]:
        more = step["documents_out"] + sum(step["reasons"].values()) - step["documents_in"]
        written = step["step"].endswith("-rewrite")  # a text at most of each
        assert GOOD - 2 <= more <= step["documents_in"] if written else more == 0
    assert not [
        reason for step in report["steps"] for reason in step["reasons"] if reason == "set_aside"
    ]
    ended = {one.id for one in corpus.documents()} | set(dropped["id"].to_pylist())
    assert len({one.partition("#")[0] for one in ended}) == report["steps"][0]["documents_out"]
    skipped = corpus.manifest["reading"]["skipped"]
    large = sizes["bomb_bytes"] > 2**28
    assert skipped["line too long"]["count"] == 1
    assert ("compressed file that gives too much" in skipped) == large
    assert skipped["line that is not JSON"]["count"] >= 3
    assert {"extract/max_tag_chars", "extract/max_depth", "extract/max_chars"} <= set(
        dropped["reason"].to_pylist()
    )
    records = [json.loads(path.read_text()) for path in (tmp_path / "work").rglob("*.json")]
    costs = [one["cost"] for one in records if isinstance(one, dict) and "cost" in one]
    assert len(costs) > 30
    assert max(one["peak_bytes"] for one in costs) < 900 * 2**20
    assert sum(one["cpu_seconds"] for one in costs) < 60
