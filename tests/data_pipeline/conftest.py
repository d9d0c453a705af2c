"""A folder of small texts, a run that prepares them, and a way to do it; and a small trained model."""

import hashlib
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from data_pipeline import prepare as prepare_module
from data_pipeline.engine.isolation.limits import Limits
from data_pipeline.engine.isolation.watch import Watch
from data_pipeline.engine.task import Task
from data_pipeline.operations import perform
from data_pipeline.prepare import prepare
from data_pipeline.report import Report
from data_pipeline.stages.shards import Workshop
from data_pipeline.tokenizers.hf_json import train_byte_bpe
from maxlm.config.pipeline.tokenizer import ByteBpeConfig
from maxlm.config.schema import RunConfig
from tests.small_models import model_settings

FIXTURE = Path(__file__).parents[1] / "checkpoint/hf/fixtures/llama2"
VOCAB = 320  # of the small model
WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "return",
    "class",
    "def",
    "import",
    "value",
    "token",
    "page",
    "model",
]


def text(seed, words=120):
    """Return lines of random words."""
    generator = random.Random(seed)
    return "".join(
        generator.choice(WORDS) + generator.choice([" ", " ", "\n", "\n    "]) for _ in range(words)
    )


@pytest.fixture
def make_text():
    return text


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(40):
        (folder / f"text{number:02}.txt").write_text(text(number))
    return folder


@pytest.fixture
def run_config(raw, tmp_path):
    """Return a function that makes the run, with settings of its sources' `raw` replaced."""

    def make(
        *, vocab_size=400, source="text", out=None, pipeline=None, shuffle="global", **settings
    ):
        out = out or tmp_path / "out"
        raw_settings = {"kind": "files", "paths": [str(raw)], "validation_fraction": 0.2} | settings
        return RunConfig.model_validate(
            {
                "run_dir": str(tmp_path / "run"),
                "model": model_settings(vocab_size=vocab_size, num_layers=1, embed_dim=8),
                "data": {
                    "sources": {source: {"path": str(out / source), "raw": raw_settings}},
                    "tokenizer": str(out / "tokenizer.model"),
                    "sequence_length": 16,
                    "shuffle": shuffle,
                    "pipeline": {"engine": {"workers": 1}} | (pipeline or {}),
                },
                "train": {"num_steps": 1, "batch_size": 1},
            }
        )

    return make


@pytest.fixture
def do(monkeypatch):
    """Return a function that prepares a run within this process and returns what it printed."""
    monkeypatch.setattr(prepare_module, "build_engine", lambda _: InProcess())

    def prepared(config, *, force=False):
        out = io.StringIO()
        prepare(config, force=force, report=Report(Console(file=out, width=100, soft_wrap=True)))
        return out.getvalue()

    return prepared


@pytest.fixture
def hashes():
    """Return a function from a folder to {file: hash of its bytes}."""

    def of(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }

    return of


class InProcess:
    """An engine that runs tasks here, one after the other."""

    def __init__(self):
        self.limits = Limits(2**31, 60.0)

    def run(self, tasks, done):
        for task in tasks:
            perform(Task.from_json(task.to_json()), Watch(self.limits))
            done(task)

    def close(self):
        pass


@pytest.fixture
def workshop(tmp_path):
    """A place to work at without other processes."""
    return Workshop(
        folder=tmp_path / "work",
        engine=InProcess(),
        report=Report(Console(file=io.StringIO())),
        memory_bytes=2**31,
        shard_bytes=10**6,
        shard_tokens=2**28,
        keep_steps=False,
    )


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A small model with random weights and a byte-level tokenizer, as published weights are."""
    folder = tmp_path_factory.mktemp("published")
    config = json.loads((FIXTURE / "config.json").read_text())
    config |= {"vocab_size": VOCAB, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(FIXTURE / "model.safetensors")
    generator = np.random.default_rng(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = generator.normal(size=(VOCAB, 32)).astype(np.float32) / 3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["theorem", "proof", "buy", "cheap"], k=40)) for _ in range(20)]
    for name, data in train_byte_bpe(ByteBpeConfig(), texts, VOCAB).items():
        (folder / name).write_bytes(data)
    return folder
