"""The presets for web pages and for code: real text through every step to a trained model."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from maxlm.cli import main
from maxlm.config import load_data
from maxlm.data.shards import TokenShards
from maxlm.data.tokenizers import open_tokenizer
from tests.conftest import QUICK_COMPILE
from tests.data_pipeline.crawl import ADDRESS, pages, train_models, write_web
from tests.small_models import model_settings

ROOT = Path(__file__).parents[2]
CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")


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


def report_of(folder):
    return json.loads((folder / "report.json").read_text())["steps"]


def reasons_of(folder):
    """Return {step: {reason: documents}} of a prepared source."""
    steps = report_of(folder)
    return {one["step"].partition("-")[2] or one["step"]: one["reasons"] for one in steps}


def texts_of(folder, split):
    shards, tokenizer = (
        TokenShards(folder / split),
        open_tokenizer(folder.parent / "tokenizer.model"),
    )
    tokens = shards.read(0, shards.num_tokens)
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.bos_id))[1:]
    return [tokenizer.decode(document) for document in documents]


def test_pages_of_a_crawl_become_a_trained_model(do, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    preset, web = ROOT / "configs/data/web.yaml", tmp_path / "data/web"
    write_web(web)
    assert main(["prepare", str(preset)]) == 2  # all files that are missing, at once
    error = capsys.readouterr().err
    assert error.count("there is no such file") == 2
    for action, file in (
        ("train-classifier", "quality.classifier"),
        ("train-ngrams", "good.ngrams"),
    ):
        assert re.search(rf"make it: maxlm data {action} .* --output data/web/{file}\n", error)
    train_models(web)
    overrides = ["data.vocab_size=512", "data.sequence_length=64"]
    do(load_data(preset, overrides).config)

    shards = web / "shards"
    dropped = {step: set(reasons) for step, reasons in reasons_of(shards).items()}
    assert dropped["extract"] == {"extract/max_depth"}
    assert dropped["url"] == {"url/domain"}
    by_address = report_of(shards)[3]
    assert (by_address["step"], by_address["reasons"]) == ("03-exact_dedup", {"exact_dedup/url": 1})
    assert dropped["language"] == {"language/other"}
    assert "gopher_repetition/max_dup_line_frac" in dropped["heuristics"]
    assert dropped["toxicity"] == {"toxicity/max_count"}
    assert dropped["exact_dedup"] == {"exact_dedup/document"}
    assert dropped["near_dedup"] == {"near_dedup"}
    assert {reason.partition("/")[0] for reason in dropped["decontaminate"]} == {"decontaminate"}
    assert dropped["top_fraction"] == {"top_fraction"}
    texts = texts_of(shards, "train") + texts_of(shards, "validation")
    assert 80 < len(texts) < len(pages())
    whole = "\n".join(texts)
    assert "<p>" not in whole
    assert "Frobnicator" not in whole.title()
    assert "forty wagons" not in whole
    assert ADDRESS not in whole
    assert "[EMAIL]" in whole
    (cut,) = [one for one in report_of(shards) if one["step"].endswith("substring_dedup")]
    assert cut["bytes_out"] < cut["bytes_in"] - 300  # the passage, and what the reference repeats
    losses = train(tmp_path, "web.yaml")
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.3


def test_code_under_permissive_licences_becomes_a_trained_model(do, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "data/code/raw"
    raw.mkdir(parents=True)
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.glob("[a-j]*.py")):
        shutil.copy(path, raw)
    body = (library / "bisect.py").read_text()
    planted = {
        "copyleft.py": "# SPDX-License-Identifier: GPL-3.0-only\n" + body,
        "copy.of.bisect.py": "\n\n" + body,
        "generated.py": "# This file is generated by a script; do not edit.\nx = 1\n",
        "packed.js": "var a = 1; // x\n" + "f(1,2,3);" * 300,
        "data.py": "# data\nblob = '" + "QUJD" * 600 + "'\n",
        "bare.py": "value = compute(value, other)\n" * 40,
        "keys.py": '"""Settings."""\n\nAPI_KEY = "AKIA' + "IOSFODNN7EXAMPLQ" + '"\nADMIN = "root@corp-mail.org"\n',
        "named.c": "/* SPDX-License-Identifier: MIT */\n/* Adds. */\nint add(int a, int b) {\n  return a + b;\n}\n",
    }  # fmt: skip
    for name, text in planted.items():
        (raw / name).write_text(text)
    overrides = [
        "data.vocab_size=512",
        "data.sequence_length=64",
        "data.sources.code.raw.licence=PSF-2.0",
    ]
    do(load_data(ROOT / "configs/data/code.yaml", overrides).config)
    shards = tmp_path / "data/code/shards"
    rows = pq.read_table(shards / "dropped.parquet").to_pylist()
    dropped = {Path(row["id"]).name: row["reason"] for row in rows}
    expected = {
        "copyleft.py": "licence/not_allowed",
        "copy.of.bisect.py": "exact_dedup/document",
        "generated.py": "starcoder/auto_generated",
        "packed.js": "starcoder/max_line_length",
        "data.py": "starcoder/max_line_length",
        "bare.py": "starcoder/min_comment_ratio",
    }
    assert {name: dropped.get(name) for name in planted if name in dropped} == expected
    whole = "\n".join(texts_of(shards, "train") + texts_of(shards, "validation"))
    assert "int add(int a, int b)" in whole
    assert "root@corp-mail.org" not in whole
    assert 'API_KEY = "[SECRET]"' in whole
    losses = train(tmp_path, "code.yaml")
    assert losses[-1] < losses[0] - 0.3


def test_rows_of_code_are_judged_by_their_paths_stars_and_licences(do, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "data/code/raw"
    raw.mkdir(parents=True)
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-b]*.py")):
        shutil.copy(path, raw)
    table = "".join(f'["{row}", "some text of it"]\n' for row in range(600))
    good = "# Doubles what it is given.\ndef double(value):\n    return 2 * value\n"
    rows = [
        {"text": table, "path": "a/table.json", "stars": 9, "license": ["MIT"]},
        {"text": good, "path": "b/both.py", "stars": 7, "license": ["MIT", "ISC OR GPL-3.0-only"]},
        {"text": good + good, "path": "b/one.py", "stars": 7, "license": ["MIT", "GPL-3.0-only"]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), raw / "rows.parquet")
    steps = "pipeline.steps=[{kind: licence}, {kind: heuristics, rules: [starcoder]}]"
    more = ["vocab_size=400", "sequence_length=64", "sources.code.raw.licence=PSF-2.0", steps]
    do(load_data(ROOT / "configs/data/code.yaml", [f"data.{one}" for one in more]).config)
    shards = tmp_path / "data/code/shards"
    dropped = pq.read_table(shards / "dropped.parquet").to_pylist()
    assert {Path(row["id"]).name: row["reason"] for row in dropped if "rows" in row["id"]} == {
        "rows.parquet:1": "starcoder/max_data_lines",
        "rows.parquet:3": "licence/not_allowed",
    }
    assert report_of(shards)[0]["values"]["stars"] == {"7": 2, "9": 1}
