"""A tiny prepared text and a config for it, for whole runs in processes of their own."""

import json
import logging
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from maxlm import runtime
from maxlm.cli import main
from tests import audit
from tests.conftest import PATIENCE, QUICK_COMPILE
from tests.small_models import model_settings

ROOT = Path(__file__).parents[2]
CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A folder with `text/` (token shards) and `tokenizer.model`, made by `maxlm prepare` from
    generated text.
    """
    folder = tmp_path_factory.mktemp("tiny")
    rng = random.Random(0)
    words = [
        "ember",
        "lattice",
        "mono",
        "quartz",
        "river",
        "sable",
        "tundra",
        "umber",
        "velvet",
        "willow",
    ]
    (folder / "raw").mkdir()
    for index in range(60):
        text = " ".join(rng.choice(words) for _ in range(rng.randint(20, 400)))
        (folder / "raw" / f"{index:02}.txt").write_text(f"{index}\n{text}\n")
    config = make_run(folder, folder / "unused")
    path = folder / "prepare.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["prepare", str(path)]) == 0
    return folder


def make_run(data, run_dir):
    """Return the settings of a run that compiles in seconds and takes milliseconds a step."""
    return {
        "run_dir": str(run_dir),
        "model": model_settings(
            vocab_size=320, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32
        ),
        "data": {
            "sources": {
                "text": {
                    "path": str(data / "text"),
                    "raw": {
                        "kind": "files",
                        "paths": [str(data / "raw")],
                        "validation_fraction": 0.2,
                    },
                }
            },
            "tokenizer": str(data / "tokenizer.model"),
            "sequence_length": 32,
        },
        "optimizer": {"learning_rate": 1e-2},
        "schedule": {"warmup_steps": 5},
        "train": {
            "num_steps": 40,
            "batch_size": 4,
            "log_every": 1,
            "eval_every": 20,
            "eval_batches": 2,
        },
        "checkpoint": {"every": 5, "keep_last": 2},
        "metrics": {"tensorboard": False},
        # The backend's own threads and start-up are the same for all runs; programs come from the
        # tests' cache.
        "runtime": {"platform": "cpu", **({"compile_cache": CACHE} if CACHE else {})},
    }


@pytest.fixture
def write_run(tiny_data, tmp_path):
    """write_run(section={...}) -> path of a YAML file whose run_dir is tmp_path / "run"."""

    def write(name="run", **sections):
        config = make_run(tiny_data, tmp_path / name)
        for section, values in sections.items():
            config[section] = {**config.get(section, {}), **values}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def refuse(monkeypatch, capsys):
    """refuse(arguments...) -> the message of a command that ends with exit code 2, in this process."""
    monkeypatch.setattr(runtime, "start", lambda settings: None)  # JAX runs here already
    handlers = logging.getLogger().handlers[:]

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:  # argparse
            code = stopped.code
        message = capsys.readouterr().err
        assert code == 2, message
        assert "Traceback" not in message
        return message

    yield run
    logging.getLogger().handlers[:] = handlers


def start(path, *overrides, launcher=()):
    """Start `maxlm train` in a process of its own."""
    command = [sys.executable, *(launcher or ["-m", "maxlm"]), "train", str(path), *overrides]
    # Fake devices are a setting of the run.
    flags = {"XLA_FLAGS": f"{QUICK_COMPILE} {PATIENCE}"}
    environment = {**os.environ, **flags, **audit.environment_of(Path(path).parent)}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def finish(process, code=0, seconds=400):
    """Wait for a process and return what it printed; it must end with the code."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, output
    return output


def train(path, *overrides, code=0):
    """Run `maxlm train` and return what it printed."""
    return finish(start(path, *overrides), code)


def wait_for_step(run_dir, step, process, seconds=60):
    """Wait until metrics of a step are written."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        path = run_dir / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.01)
    pytest.fail(
        f"step {step} was not reached: {process.stdout.read() if process.poll() is not None else 'timeout'}"
    )


def read_metrics(run_dir):
    """Return {step: values} of a run's metrics.jsonl."""
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record for record in map(json.loads, lines)}


def curve(run_dir):
    """Return what must not depend on interruptions: (step, bits of the loss, token hash) for every
    step.
    """
    return [
        (step, values["train/loss_hex"], values["data/token_hash"])
        for step, values in read_metrics(run_dir).items()
    ]
