"""Whole runs: killed at any moment and resumed, stopped by signals, refused, diverged."""

import random
import shutil
import signal
import time
from collections import Counter

import numpy as np
import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from maxlm.config import load_run
from maxlm.config.cluster.exit_codes import Exit
from maxlm.data import token_hash
from maxlm.data.dataset import build_dataset
from maxlm.metrics.history.events import read_events
from maxlm.models.cost import flops_per_token
from tests.damage import flip_arrays
from tests.small_models import model_settings
from tests.train.conftest import curve, finish, read_metrics, start, train, wait_for_step


def test_kills_at_random_moments_change_no_bit(write_run, tmp_path):
    # Larger than the other runs, so that some kills fall into a save: every second step is saved.
    sections = {
        "train": {"num_steps": 60, "eval_every": 0},
        "checkpoint": {"every": 2, "keep_last": 2},
    }
    train(write_run("whole", **sections))
    path = write_run("killed", **sections)
    rng = random.Random(time.time_ns())
    reached = 0
    for _ in range(4):  # fifty: tests/drills/test_kills.py
        process = start(path)
        if reached < 50:
            # A save waits for the one before: where the sixth step is done, the second is saved.
            wait_for_step(tmp_path / "killed", reached + rng.randint(3, 14), process)
            time.sleep(rng.random() * 0.05)
        else:
            time.sleep(rng.random() * 4)
        process.kill()
        process.communicate()
        reached = max([0, *read_metrics(tmp_path / "killed")])
    output = train(path)
    assert "resuming: after step" in output
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


def test_resume_on_another_mesh_reads_the_same_tokens(write_run, tmp_path):
    train(write_run("whole"))
    path = write_run("moved")
    train(path, "train.num_steps=20", "schedule.total_steps=40")
    sharded = ["runtime.device_count=4", "mesh.fsdp=2", "mesh.tensor=2", "schedule.total_steps=40"]
    train(path, "checkpoint.allow_config_change=false", *sharded)
    whole, moved = curve(tmp_path / "whole"), curve(tmp_path / "moved")
    assert [row[2] for row in moved] == [row[2] for row in whole]
    assert moved[:20] == whole[:20]
    losses = [[float.fromhex(row[1]) for row in rows] for rows in (moved, whole)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_cleanly_and_says_how_to_resume(write_run, tmp_path, number):
    path = write_run(train={"num_steps": 100_000})
    process = start(path)
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(number)
    output = finish(process, code=Exit.STOPPED)
    assert f"resume with: maxlm train {path}" in output
    stopped = max(read_metrics(tmp_path / "run"))
    assert f"stopped after step {stopped} of 100000" in output
    # The step it stopped at is saved, whatever checkpoint.every says.
    assert (tmp_path / "run" / "checkpoints" / f"{stopped:08}").is_dir()


def test_changed_settings_are_refused_with_the_difference(write_run, tmp_path):
    train(write_run(train={"num_steps": 6}))
    path = write_run(train={"num_steps": 6, "batch_size": 8}, optimizer={"learning_rate": 0.5})
    before = curve(tmp_path / "run")
    output = train(path, code=2)
    assert "train.batch_size: 4 -> 8" in output
    assert "optimizer.learning_rate: 0.01 -> 0.5" in output
    assert "checkpoint.allow_config_change=true" in output
    assert "Traceback" not in output
    assert curve(tmp_path / "run") == before


def test_another_batch_size_goes_on_with_the_rows_that_follow(write_run, tmp_path):
    schedule = {"kind": "constant", "warmup_steps": 0}
    path = write_run(train={"num_steps": 4, "batch_size": 8, "eval_every": 0}, schedule=schedule)
    train(path)
    more = ["train.num_steps=7", "train.batch_size=4"]
    assert "train.batch_size: 8 -> 4" in train(path, *more, code=2)
    train(path, *more, "checkpoint.allow_config_change=true")
    # And once more, from a checkpoint with two batch sizes behind it.
    last = ["train.num_steps=9", "train.batch_size=8", "checkpoint.allow_config_change=true"]
    train(path, *last)
    config = load_run(path, last).config
    dataset = build_dataset(config.data, seed=0, batch_size=1, split="train")
    edges = [0, 8, 16, 24, 32, 36, 40, 44, 52, 60]
    metrics = read_metrics(tmp_path / "run")
    assert [values["data/rows"] for values in metrics.values()] == edges[1:]
    assert [values["data/tokens"] for values in metrics.values()] == [
        32 * rows for rows in edges[1:]
    ]
    per_token = flops_per_token(config.model, 32)
    for rows, values in zip(edges[1:], metrics.values(), strict=True):
        assert values["train/flops"] == pytest.approx(rows * 32 * per_token, rel=1e-12)
        assert values["data/epoch/text"] == pytest.approx(rows / dataset.num_batches, rel=1e-12)
    # The hash of the tokens is that of rows [0, 60) in these steps: none twice, none left out.
    running = np.zeros(2, np.uint32)
    for first, stop, values in zip(edges, edges[1:], metrics.values(), strict=False):
        batch = dataset.rows(first, stop)
        places = {"rows": np.arange(stop - first), "columns": np.arange(32)}
        running = token_hash.advance(
            running, token_hash.batch_hash(batch["tokens"], batch["segment_ids"], **places)
        )
        assert values["data/token_hash"] == token_hash.hexdigest(running)


def test_a_run_whose_rates_stay_goes_on_for_more_steps_and_not_for_fewer(write_run, tmp_path):
    schedule = {"kind": "inverse_sqrt", "warmup_steps": 5}
    train(write_run("whole", schedule=schedule, train={"num_steps": 12, "eval_every": 0}))
    path = write_run("more", schedule=schedule, train={"num_steps": 6, "eval_every": 0})
    train(path)
    train(path, "train.num_steps=12")
    assert curve(tmp_path / "more") == curve(tmp_path / "whole")
    before = (tmp_path / "more" / "metrics.jsonl").read_bytes()
    message = train(path, "train.num_steps=8", code=2)
    assert f"run_dir={tmp_path}/more holds a run at step 12, beyond train.num_steps=8" in message
    assert "use train.num_steps=12 or more, or another run_dir" in message
    assert (tmp_path / "more" / "metrics.jsonl").read_bytes() == before


def test_rates_of_steps_to_come_may_change_and_it_is_said(write_run, tmp_path):
    schedule = {"kind": "wsd", "warmup_steps": 2, "cooldown_steps": 2}
    train(write_run("whole", schedule=schedule, train={"num_steps": 12, "eval_every": 0}))
    path = write_run("more", schedule=schedule, train={"num_steps": 8, "eval_every": 0})
    train(path)
    # Step 8 has seen the end of a decay that a run of 12 steps does not have there.
    assert "schedule.total_steps: 8 -> 12" in train(path, "train.num_steps=12", code=2)
    # Leaves that of step 5, before the decay.
    shutil.rmtree(tmp_path / "more" / "checkpoints" / "00000008")
    output = train(path, "train.num_steps=12")
    assert (
        "not as at step 5 (saved -> now):\n  learning rates of steps to come: schedule.total_steps: 8 -> 12"
        in output
    )
    assert curve(tmp_path / "more") == curve(tmp_path / "whole")


def test_a_second_job_is_refused(write_run, tmp_path):
    path = write_run(train={"num_steps": 100_000})
    first = start(path)
    wait_for_step(tmp_path / "run", 1, first)
    output = train(path, code=2)
    assert f"in use by another job (process {first.pid}" in output
    first.send_signal(signal.SIGTERM)
    finish(first, code=Exit.STOPPED)


def test_missing_data_is_told_before_any_device_work(write_run, tmp_path):
    path = write_run()
    output = train(path, f"data.sources.text.path={tmp_path}/nothing", code=2)
    assert "maxlm prepare" in output
    assert not (tmp_path / "run").exists()


def test_divergence_skips_steps_then_stops_and_loses_nothing(write_run, tmp_path):
    path = write_run(
        train={"num_steps": 200, "max_skipped_steps": 3},
        optimizer={"clip_norm": None},
        checkpoint={"every": 1},
        metrics={"tensorboard": True},
    )
    # Every update is as large as fp32 allows: the second step's loss cannot be finite.
    # And settings as large as they may be change nothing about that.
    names = [
        "objective.chunk_tokens",
        "train.eval_batches",
        "checkpoint.keep_last",
        "train.num_steps",
    ]
    large = [f"{name}=2147483647" for name in names]
    output = train(path, "optimizer.learning_rate=1e38", "schedule.warmup_steps=0", *large, code=1)
    assert "the last 3 steps" in output
    assert "from before them, where a start goes on, is of step 1. What step 4 read" in output
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["00000001"]
    assert "optimizer.learning_rate" in output
    assert "Traceback" not in output
    metrics = read_metrics(tmp_path / "run")
    assert [values["optim/skipped_steps"] for values in metrics.values()] == [0, 1, 2]
    # TensorBoard has each word of it, to what ended the run.
    curves = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    shown = [
        (event.kind, curves.Tensors(f"events/{event.kind}/text_summary"))
        for event in read_events(tmp_path / "run")[0]
    ]
    assert {"skipped_step", "failed"} < {kind for kind, _ in shown}
    counts = Counter(kind for kind, _ in shown)
    assert {kind: len(texts) for kind, texts in shown} == counts
    (failed,) = dict(shown)["failed"]
    assert failed.step == 4
    assert b"the last 3 steps" in failed.tensor_proto.string_val[0]


def test_a_damaged_newest_checkpoint_is_passed_over_loudly(write_run, tmp_path):
    path = write_run(train={"num_steps": 20, "eval_every": 0})
    train(path)
    whole = curve(tmp_path / "run")
    flip_arrays(tmp_path / "run" / "checkpoints" / "00000020")
    output = train(path)
    assert "damaged checkpoint" in output
    assert "resuming: after step 15" in output
    assert curve(tmp_path / "run") == whole


def test_a_truncated_shard_is_named(write_run, tmp_path, tiny_data):
    folder = tmp_path / "text"
    folder.mkdir()
    for file in (tiny_data / "text").rglob("*"):
        if file.is_file():
            target = folder / file.relative_to(tiny_data / "text")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    shard = max((folder / "train").iterdir(), key=lambda file: file.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-100])
    output = train(write_run(), f"data.sources.text.path={folder}", code=2)
    assert shard.name in output
    assert "Traceback" not in output


def test_a_pipeline_resumes_on_context_expert_and_tensor(write_run, tmp_path):
    experts = {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "expert_dim": 16}
    sizes = {"vocab_size": 320, "num_layers": 5, "embed_dim": 32, "num_heads": 2, "mlp_dim": 32}
    model = model_settings(**sizes, prefix=[{}], pattern=[{"ffn": experts}])
    # Choosing experts is a jump: large steps would make one token's other choice, after rounding, a
    # visible difference.
    optimizer = {"learning_rate": 5e-4}
    # Balanced within each microbatch, so their number stays.
    settings = {"num_steps": 12, "batch_size": 8, "microbatches": 2, "eval_every": 0}
    sections = {"model": model, "train": settings, "optimizer": optimizer}
    train(write_run("whole", **sections))
    path = write_run("moved", **sections)
    first = ["mesh.stage=2", "mesh.stage_repeats=2", "mesh.fsdp=4", "runtime.device_count=8"]
    train(path, *first, "train.num_steps=6", "schedule.total_steps=12")
    second = [
        "mesh.fsdp=1",
        "mesh.tensor=2",
        "mesh.context=2",
        "mesh.expert=2",
        "runtime.device_count=8",
    ]
    output = train(path, *second)
    assert "resuming: after step 6" in output
    whole, moved = curve(tmp_path / "whole"), curve(tmp_path / "moved")
    assert [row[2] for row in moved] == [row[2] for row in whole]
    losses = [[float.fromhex(row[1]) for row in rows] for rows in (moved, whole)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


EXPERTS = {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "expert_dim": 16}
UNEVEN = {
    "three layers and a module on two stages": (
        3,
        {"segments": [{"pattern": [{}]}], "mtp": {"depth": 1}},
        ["mesh.stage=2"],
    ),
    "dense and experts on two stages, twice": (
        5,
        {"segments": [{"repeat": 2, "pattern": [{}]}, {"pattern": [{"ffn": EXPERTS}]}]},
        ["mesh.stage=2", "mesh.stage_repeats=2"],
    ),
}


@pytest.mark.parametrize(
    ("num_layers", "layers", "stages"),
    [
        pytest.param(*case, id=name, marks=pytest.mark.slow if "experts" in name else ())
        for name, case in UNEVEN.items()
    ],
)
def test_uneven_stages_and_one_device_take_turns(write_run, tmp_path, num_layers, layers, stages):
    model = model_settings(
        vocab_size=320, num_layers=num_layers, embed_dim=16, num_heads=2, mlp_dim=32
    )
    model |= layers
    # Choosing experts is a jump: see above. They are balanced within each microbatch.
    settings = {"num_steps": 6, "eval_every": 0, "microbatches": 2}
    sections = {"model": model, "train": settings, "optimizer": {"learning_rate": 5e-4}}
    train(write_run("whole", **sections))
    path = write_run("moved", **sections)
    staged = [*stages, "mesh.fsdp=1", "runtime.device_count=2", "schedule.total_steps=6"]
    train(path, *staged, "train.num_steps=2")
    assert "resuming: after step 2" in train(path, "train.num_steps=4", "schedule.total_steps=6")
    assert "resuming: after step 4" in train(path, *staged)
    whole, moved = curve(tmp_path / "whole"), curve(tmp_path / "moved")
    assert [row[2] for row in moved] == [row[2] for row in whole]
    losses = [[float.fromhex(row[1]) for row in rows] for rows in (moved, whole)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
