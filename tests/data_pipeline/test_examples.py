"""The presets for web pages and for code: real text through every step to a trained model."""

import gzip
import html
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from maxlm.cli import main
from maxlm.config import load_data
from maxlm.data.shards import TokenShards
from maxlm.data.tokenizers import open_tokenizer
from tests.conftest import QUICK_COMPILE
from tests.data_pipeline.readers.test_warc import response
from tests.small_models import model_settings

ROOT = Path(__file__).parents[2]
CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
WORDS = 250  # of a page, about
GERMAN = (
    "Der schnelle braune Fuchs springt im Morgengrauen ueber den faulen Hund, und die Kinder sehen ihm dabei zu. "
    "Danach gehen sie nach Hause, weil es regnet und der Weg durch den Wald noch lang ist. "
) * 6


def pages():
    """Return the language reference that Python brings along, cut into pages of prose and examples."""
    found = []
    for name, text in sorted(topics.items()):
        held = []
        for paragraph in re.split(r"\n\s*\n", text):
            held.append(paragraph)
            if sum(len(one.split()) for one in held) >= WORDS:
                found.append((f"{name}-{len(found)}", held))
                held = []
    return found


def as_html(title, paragraphs):
    """Return a page with a menu and a footer around its text."""
    parts = [
        f"<pre>{html.escape(one)}</pre>"
        if all(line.startswith("   ") for line in one.splitlines())
        else f"<p>{html.escape(' '.join(one.split()))}</p>"
        for one in paragraphs
    ]
    menu = "".join(f"<li><a href='/{word}'>{word}</a></li>" for word in ("home", "index", "about"))
    return (
        f"<html><head><title>{title}</title></head><body><nav><ul>{menu}</ul></nav><main><article>"
        f"<h1>{title}</h1>{''.join(parts)}</article></main><footer>All rights</footer></body></html>"
    )


def plain(paragraphs):
    return " ".join(" ".join(paragraphs).split())


def write_crawl(folder, real):
    """Write an archive of real pages, with one of every kind that a step is there for."""
    first, second, third = (list(real[number][1]) for number in (3, 40, 80))
    planted = {
        "deep": "<div>" * 2000 + plain(first),
        "german": as_html("Fuchs", [GERMAN]),
        "menu": as_html("Menu", ["home\nnews\nabout\ncontact " * 30]),
        "toxic": as_html("Bad", [*second, "You are a complete frobnicator of the worst kind."]),
        "copy": as_html(real[3][0], first),
        "near": as_html("Nearly", [*second[:-1], second[-1] + " A last sentence is added here."]),
        "passage": as_html("Quoting", [*third[: len(third) // 2], *real[120][1]]),
        "leaked": as_html("Exam", [*real[90][1], BENCHMARK]),
        "mail": as_html(
            "Mail", [*real[140][1], "Write to guido.example@python-mail.org about it."]
        ),
    }
    records = [
        response(f"blocked/{name}", body=page.encode()).replace(b"example.org", b"blocked.test")
        if name == "blocked"
        else response(name, body=page.encode())
        for name, page in [
            *((name, as_html(name, paragraphs)) for name, paragraphs in real),
            *planted.items(),
            ("blocked", as_html("Blocked", real[60][1])),
        ]
    ]
    folder.mkdir(parents=True)
    (folder / "crawl.warc.gz").write_bytes(b"".join(map(gzip.compress, records)))


BENCHMARK = (
    "Question 17: a train with forty wagons leaves the northern harbour at nine and meets the other train at noon; "
    "how many wagons does the second train have if each of them carries seven crates of oranges?"
)


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A folder with all that the preset needs, and the names of what its models are trained on."""
    monkeypatch.chdir(tmp_path)
    real, web = pages(), tmp_path / "data/web"
    write_crawl(web / "raw", real)
    for name in ("good", "bad", "benchmarks"):
        (web / name).mkdir()
    good, generator = [plain(paragraphs) for _, paragraphs in real[::2]], np.random.default_rng(0)
    for number, text in enumerate(good):
        (web / f"good/{number}.txt").write_text(text)
        words = np.array(text.split())
        (web / f"bad/{number}.txt").write_text(
            " ".join(generator.permutation(words)[:60]) + " buy now"
        )
    (web / "benchmarks/exam.jsonl").write_text(json.dumps({"question": BENCHMARK}) + "\n")
    (web / "blocked_domains.txt").write_text("blocked.test\n")
    (web / "toxic_words.txt").write_text("frobnicator # a made-up word\n")
    return web


def train(tmp_path, preset):
    """Train a few steps on a preset's data; return the losses."""
    run = {
        "include": [str(ROOT / "configs/data" / preset)],
        "run_dir": str(tmp_path / "run"),
        "model": model_settings(
            vocab_size=512, num_layers=1, embed_dim=32, num_heads=2, mlp_dim=64
        ),
        "data": {"vocab_size": 512, "sequence_length": 64},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"num_steps": 12, "batch_size": 8, "log_every": 1, "eval_batches": 1},
        "metrics": {"tensorboard": False},
        "runtime": {"platform": "cpu", **({"compile_cache": CACHE} if CACHE else {})},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    command = [sys.executable, "-m", "maxlm", "train", "run.yaml"]
    environment = {**os.environ, "XLA_FLAGS": QUICK_COMPILE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    return [one["train/loss"] for one in map(json.loads, lines) if "train/loss" in one]


def reasons_of(folder):
    """Return {step: {reason: documents}} of a prepared source."""
    report = json.loads((folder / "report.json").read_text())
    return {one["step"].partition("-")[2] or one["step"]: one["reasons"] for one in report["steps"]}


def texts_of(folder, split):
    shards, tokenizer = (
        TokenShards(folder / split),
        open_tokenizer(folder.parent / "tokenizer.model"),
    )
    tokens = shards.read(0, shards.num_tokens)
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.bos_id))[1:]
    return [tokenizer.decode(document) for document in documents]


def test_pages_of_a_crawl_become_a_trained_model(web, do, tmp_path, capsys):
    preset = ROOT / "configs/data/web.yaml"
    assert main(["prepare", str(preset)]) == 2  # all files that are missing, at once
    error = capsys.readouterr().err
    assert error.count("there is no such file") == 2
    good, bad = str(web / "good"), str(web / "bad")
    output = str(web / "quality.classifier")
    assert main(["data", "train-classifier", good, bad, "--output", output, "--bits", "14"]) == 0
    output = str(web / "good.ngrams")
    assert (
        main(
            ["data", "train-ngrams", good, "--output", output, "--order", "2", "--held-out", "0.2"]
        )
        == 0
    )
    overrides = ["data.vocab_size=512", "data.sequence_length=64"]
    do(load_data(preset, overrides).config)

    shards = web / "shards"
    dropped = reasons_of(shards)
    print(json.dumps(dropped, indent=1))
    texts = texts_of(shards, "train") + texts_of(shards, "validation")
    losses = train(tmp_path, "web.yaml")
    print(losses)
