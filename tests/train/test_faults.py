"""What goes wrong around a run: each fault has its message, its cure and its exit code, and loses
nothing.
"""

import contextlib
import re
import shlex
import subprocess

import jax
import jax.numpy as jnp
import pytest

from data_pipeline.tokenizers.sentencepiece import train_sentencepiece
from maxlm.config.errors import RunFailedError
from maxlm.config.pipeline.tokenizer import BpeConfig
from maxlm.runtime import explain_memory
from maxlm.train import loop
from tests.train.conftest import curve, finish, read_metrics, start, train, wait_for_step

# Trains as `maxlm train` does, but the weights of the batches of steps 10 and 11 are not numbers.
POISONED = """
import sys
from maxlm.cli import main
from maxlm.train import loop

compile_step = loop.compile_step

def poisoned(config, program):
    compiled = compile_step(config, program)

    def run(state, batch):
        if int(state.step) in (9, 10):
            batch = {**batch, "weights": batch["weights"] * float("nan")}
        return compiled.run(state, batch)

    return compiled._replace(run=run)

loop.compile_step = poisoned
sys.exit(main())
"""


# Trains as `maxlm train` does, but evaluations and saves take three seconds longer.
SLOW = """
import sys, time
from maxlm.checkpoint import layout
from maxlm.cli import main
from maxlm.train import loop

def later(function):
    def slow(*arguments, **options):
        time.sleep(3)
        return function(*arguments, **options)
    return slow

loop.evaluate, layout.seal = later(loop.evaluate), later(layout.seal)
sys.exit(main())
"""


def test_rates_are_those_of_steps_and_what_holds_them_up_is_shown(write_run, tmp_path):
    sections = {"train": {"num_steps": 9, "eval_every": 3}, "checkpoint": {"every": 4}}
    finish(start(write_run(**sections), launcher=["-c", SLOW]))
    metrics = read_metrics(tmp_path / "run")
    seconds = [values["time/step_seconds"] for values in metrics.values()]
    assert max(seconds) < 2
    rates = [values["throughput/tokens_per_second"] for values in metrics.values()]
    assert rates == pytest.approx([4 * 32 / each for each in seconds])
    evaluations = [values["time/evaluation_seconds"] // 3 for values in metrics.values()]
    assert evaluations == [0, 0, 1, 1, 1, 2, 2, 2, 3]
    stalls = [values["time/checkpoint_stall_seconds"] // 3 for values in metrics.values()]
    assert stalls == [0, 0, 0, 0, 1, 1, 1, 1, 2]


def test_steps_with_nan_are_skipped_and_counted_and_training_goes_on(write_run, tmp_path):
    train(write_run("whole", train={"num_steps": 20}))
    path = write_run("run", train={"num_steps": 20}, metrics={"tensorboard": True})
    output = finish(start(path, launcher=["-c", POISONED]))
    assert "step 10 was skipped: its loss (nan) or gradient (norm nan) is not finite" in output
    assert "step 11 was skipped" in output
    assert "step 12 was skipped" not in output
    assert "step 10 is not saved: the last 1 steps were skipped, and its weights may" in output
    assert "from before them, where a start goes on, is of step 5" in " ".join(output.split())
    assert "NaN or Inf found" not in output
    metrics = read_metrics(tmp_path / "run")
    assert [values["optim/skipped_steps"] for values in metrics.values()] == [0] * 9 + [1] + [
        2
    ] * 10
    assert [step for step, values in metrics.items() if values["train/loss"] is None] == [10, 11]
    assert metrics[10]["train/loss_hex"] == "nan"
    # Steps 10 and 11 leave the parameters of step 9 as they are; then they move again.
    norms = [metrics[step]["optim/parameter_norm"] for step in (9, 10, 11, 12)]
    assert norms[0] == norms[1] == norms[2] != norms[3]
    assert metrics[20]["train/loss"] < metrics[9]["train/loss"]
    # Until then nothing differs, and the tokens never do.
    assert curve(tmp_path / "run")[:9] == curve(tmp_path / "whole")[:9]
    assert [row[2] for row in curve(tmp_path / "run")] == [
        row[2] for row in curve(tmp_path / "whole")
    ]


def test_a_disk_that_fills_up_during_a_run_loses_nothing(write_run, make_disk, tmp_path):
    sections = {
        "train": {"num_steps": 300, "eval_every": 0},
        "checkpoint": {"every": 10, "keep_last": 2},
    }
    train(write_run("whole", **sections))
    disk = make_disk(40)
    path, run_dir = write_run("run", **sections), disk / "run"
    process = start(path, f"run_dir={run_dir}")
    wait_for_step(run_dir, 25, process)
    fill(disk / "filler")
    output = finish(process, code=2)
    assert "No space left on device; make room" in output or "the disk is full" in output
    assert str(run_dir) in output
    assert "Traceback" not in output
    # Still full, it says so at once; with room again, it goes on as if nothing had been.
    assert "MiB left on its disk" in train(path, f"run_dir={run_dir}", code=2)
    (disk / "filler").unlink()
    assert "resuming: after step" in train(path, f"run_dir={run_dir}")
    assert curve(run_dir) == curve(tmp_path / "whole")


def fill(path):
    """Write zeros until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))


def test_a_disk_that_cannot_be_written_is_told_before_training(write_run, make_disk):
    disk = make_disk(40)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    output = train(write_run(), f"run_dir={disk}/run", code=2)
    assert f"run_dir={disk}/run cannot be written: Read-only file system" in output
    assert "choose another run_dir, or make it writable" in output
    assert "Traceback" not in output


def test_too_few_devices_for_the_mesh(refuse, write_run):
    message = refuse("train", write_run(), "mesh.data=4", "mesh.fsdp=4", "train.batch_size=16")
    assert "1 problem in the configuration on 8 devices" in message
    assert "mesh.data=4 * mesh.fsdp=4 = 16 must equal the device count, 8" in message
    assert (
        "use mesh.fsdp=2, or mesh.data=2, or runtime.device_count=16 to try it on fake CPU devices"
        in message
    )


@pytest.mark.parametrize(
    "size",
    [
        "model.num_layers=10000",
        "model.vocab_size=2147483646",
        "model.block.ffn.hidden_dim=2147483646",
    ],
)
def test_a_model_that_no_memory_holds(refuse, write_run, size):
    message = refuse("train", write_run(), size, "model.embed_dim=8192", "train.batch_size=8")
    assert re.search(
        r"the model has [\d,]{14,} parameters; with the optimizer they take [\d,.]+ GiB on each",
        message,
    )
    assert "use more mesh.fsdp, or a smaller model: fewer layers" in message


def test_a_step_that_no_memory_holds(refuse, write_run, monkeypatch):
    path = write_run()
    monkeypatch.setattr(loop, "memory_bytes", lambda device: 2**18)
    message = refuse("train", path, "train.batch_size=64", "data.sequence_length=64")
    assert re.search(
        r"a step needs [\d.]+ GiB on each device, cpu has 0\.0 GiB; use more devices, train.remat",
        message,
    )


def test_memory_that_runs_out_is_told_with_the_cure(monkeypatch):
    with (
        pytest.raises(RunFailedError, match=r"RESOURCE_EXHAUSTED: Out of memory.*\nuse less"),
        explain_memory("use less"),
    ):
        jax.block_until_ready(jnp.zeros((2**40,), jnp.float32) + 1)
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"), explain_memory("use less"):
        raise jax.errors.JaxRuntimeError("INTERNAL: another")


def test_tokenizers_that_are_missing_broken_or_another(refuse, write_run, tmp_path, tiny_data):
    path = write_run()
    missing = refuse("train", path, f"data.tokenizer={tmp_path}/none.model")
    assert f"{tmp_path}/none.model: there is no such tokenizer; run: maxlm prepare" in missing
    (tmp_path / "broken.model").write_bytes(b"not a model")
    assert f"{tmp_path}/broken.model" in refuse(
        "train", path, f"data.tokenizer={tmp_path}/broken.model"
    )
    assert f"{tmp_path}" in refuse("train", path, f"data.tokenizer={tmp_path}")
    small = refuse("train", path, "model.vocab_size=300")
    assert "has 320 pieces, more than model.vocab_size=300; use model.vocab_size=320" in small
    # As many pieces, but others than those the text was prepared with.
    texts = ["".join(chr(97 + index * index % 26) for index in range(20_000))]
    (tmp_path / "other.model").write_bytes(
        train_sentencepiece(BpeConfig(), texts, 320)["tokenizer.model"]
    )
    message = refuse("train", path, f"data.tokenizer={tmp_path}/other.model")
    assert f"{tmp_path}/other.model" in message
    assert f"{tiny_data}/text" in message


@pytest.mark.parametrize(
    ("in_the_way", "folder"),
    [("tensorboard", False), ("metrics.jsonl.tmp", True), ("checkpoints", False), ("lock", True)],
)
def test_something_else_where_a_run_writes(refuse, write_run, tmp_path, in_the_way, folder):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / in_the_way).mkdir() if folder else (run_dir / in_the_way).touch()
    message = refuse(
        "train",
        write_run(metrics={"tensorboard": True}),
        "mesh.fsdp=1",
        "mesh.data=4",
        "mesh.tensor=2",
    )
    assert f"{run_dir}/{in_the_way}" in message
    assert "move away what is in its place" in message


def test_any_name_and_any_encoding(write_run, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    run_dir = f"{tmp_path}/r\u00fcn \U0001f600 #1"
    path = write_run(train={"num_steps": 6}, metrics={"tensorboard": True})
    message = train(path, f"run_dir={run_dir}", code=2)
    cure = message.partition("to keep all of it: ")[2].strip()
    output = train(path, f'run_dir="{run_dir}"')
    shown = {
        label: text for label, _, text in (line.partition(": ") for line in output.splitlines())
    }
    written = run_dir.encode("ascii", "backslashreplace").decode()
    assert shlex.split(cure) == [f'run_dir="{written}"']
    assert shlex.split(shown["checkpoints"]) == [f"{written}/checkpoints"]
    assert shlex.split(shown["metrics"]) == [f"{written}/metrics.jsonl"]
    assert shlex.split(shown["curves"]) == ["tensorboard", "--logdir", f"{written}/tensorboard"]
    assert shlex.split(shown["sample"]) == ["maxlm", "generate", written, "--prompt", "..."]


def test_configs_that_are_no_files(refuse, tmp_path):
    assert "none.yaml: No such file or directory; give the path of a readable YAML" in refuse(
        "train", "none.yaml"
    )
    assert "Is a directory; give the path of a readable YAML file" in refuse("train", tmp_path)
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    assert "binary.yaml" in refuse("train", tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "the following arguments are required: RUN.yaml\n"),
        (["train", "x.yaml", "--steps=3"], "--steps=3: no such argument; settings have no dashes"),
        (
            ["train", "x.yaml", "a.b=1", "--force"],
            "--force: no such argument; settings have no dashes",
        ),
        (
            ["generate", "x", "--prompt", "a", "more"],
            "more: no such argument; see maxlm generate --help",
        ),
        (["train", "x.yaml", "fast"], "'fast' is not an override; write key.path=value"),
    ],
)
def test_arguments_that_no_command_has(refuse, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("run_dir: runs/x\n")
    assert expected in refuse(*arguments)
