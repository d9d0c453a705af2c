"""Faults in the steps of real runs: shuffled labels, a flipped bit in one copy, fewer devices and
then all again.
"""

import json

import numpy as np
import pytest

from maxlm.config.cluster.exit_codes import Exit
from tests.drills.conftest import (
    ROOT,
    assert_equal_runs,
    curve,
    read_metrics,
    run_until_done,
    undisturbed,
)

# Trains as `maxlm train` does, but something is done to some steps.
SOURCE = """
import os
import sys
from pathlib import Path

import jax
import numpy as np

from maxlm.checkpoint.leaves import flatten, unflatten
from maxlm.cli import main
from maxlm.train import loop

compile_step = loop.compile_step

def shuffled(batch):
    targets = batch["targets"]
    values = np.random.default_rng(0).permutation(np.asarray(targets).reshape(-1))
    return batch | {"targets": jax.device_put(values.reshape(targets.shape), targets.sharding)}

def changed(state, change):
    leaves = flatten(state)
    name = next(name for name in leaves if name.startswith("decoder/embed"))
    array = leaves[name]
    parts = []
    for number, shard in enumerate(array.addressable_shards):
        data = np.array(shard.data)
        change(number, data.reshape(-1))
        parts.append(jax.device_put(data, shard.device))
    corrupt = jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)
    return unflatten(state, leaves | {name: corrupt})

def flipped(state):
    def flip(number, values):
        if number == 1:
            values.view(np.uint32)[::50] ^= np.uint32(1 << 12)
    return changed(state, flip)

def poisoned(state, value, copies):
    def poison(number, values):
        if number in copies:
            values[:] = value
    return changed(state, poison)

def fault(state, batch, step):
    FAULT
    return state, batch

def faulty(config, program):
    compiled = compile_step(config, program)
    return compiled._replace(
        run=lambda state, batch: compiled.run(*fault(state, batch, int(state.step)))
    )

loop.compile_step = faulty
sys.exit(main())
"""
SKIP = {"kind": "skip", "window": 32, "min_steps": 16}


def launcher(fault):
    return {"launcher": ["-c", SOURCE.replace("FAULT", fault)]}


def validation_loss(run_dir):
    return list(read_metrics(run_dir).values())[-1]["val/text/loss"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_shuffled_labels_for_three_steps_cost_less_than_two_percent(
    write_run, tmp_path, record_property
):
    train = {"num_steps": 300, "eval_every": 0, "eval_batches": 8, "spikes": SKIP}
    run_until_done(write_run("golden", train=train), undisturbed)
    path = write_run("shuffled", train=train)
    fault = "batch = shuffled(batch) if step in (200, 201, 202) else batch"
    done = run_until_done(path, undisturbed, **launcher(fault))
    assert done.codes == [Exit.DONE]
    assert done.output.count("is a spike and was skipped") == 3
    metrics = read_metrics(tmp_path / "shuffled")
    assert metrics[300]["optim/spikes"] == metrics[300]["optim/skipped_steps"] == 3
    assert curve(tmp_path / "shuffled")[:200] == curve(tmp_path / "golden")[:200]
    losses = [validation_loss(tmp_path / name) for name in ("golden", "shuffled")]
    difference = abs(losses[1] / losses[0] - 1)
    record_property("shuffled_labels_loss_difference", difference)
    assert difference < 0.02


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_roll_back_keeps_the_clock_and_survives_a_kill(write_run, tmp_path, record_property):
    spikes = {**SKIP, "then": "roll_back"}
    train = {"num_steps": 150, "eval_every": 0, "max_skipped_steps": 3, "spikes": spikes}
    sections = {"train": train, "checkpoint": {"every": 20, "keep_last": 3}}
    run_until_done(write_run("golden", **sections), undisturbed)
    fault = "batch = shuffled(batch) if step in range(107, 112) else batch"
    done = run_until_done(write_run("rolled", **sections), undisturbed, **launcher(fault))
    assert done.codes == [Exit.DONE]
    assert "rolled back after step 110: parameters and optimizer are those of step 100" in (
        done.output
    )
    # Ten steps were taken back, and the two bad ones that are left were skipped.
    assert read_metrics(tmp_path / "rolled")[150]["optim/skipped_steps"] == 12
    golden, rolled = (curve(tmp_path / name) for name in ("golden", "rolled"))
    assert rolled[:107] == golden[:107]
    assert [row[2] for row in rolled] == [row[2] for row in golden]
    (dump,) = (tmp_path / "rolled" / "dumps").iterdir()
    assert dump.name == "step-00000110"
    rows = [json.loads(line) for line in (dump / "rows.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(109 * 4, 110 * 4))
    assert all(row["documents"] and len(row["tokens"]) == 32 for row in rows)
    # Killed five steps after the roll-back, before anything is saved, it comes to the same end.
    once = f"Path({str(tmp_path / 'once')!r})"
    killed = f"{fault}\n    if step == 115 and not {once}.exists():"
    killed += f"\n        {once}.touch()\n        os.kill(os.getpid(), 9)"
    done = run_until_done(write_run("killed", **sections), undisturbed, **launcher(killed))
    assert done.codes == [-9, Exit.DONE]
    assert_equal_runs(tmp_path / "killed", tmp_path / "rolled")
    record_property("roll_backs_repeated_after_a_kill", 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("every", "found"), [(0, 16), (2, 10)], ids=["at saves", "every 2"])
def test_flipped_bits_of_one_copy_are_found_in_time_and_the_run_goes_on(
    every, found, write_run, tmp_path, record_property
):
    """The bits are flipped after step 8 is saved, the next save is that of step 16."""
    sections = {
        "mesh": {"data": 2, "fsdp": 1},
        "runtime": {"device_count": 2, "platform": "cpu", "check_replicas_every": every},
        "train": {"num_steps": 20, "eval_every": 0},
        "checkpoint": {"every": 8},
    }
    run_until_done(write_run("golden", **sections), undisturbed)
    once = f"Path({str(tmp_path / 'once')!r})"
    fault = f"if step == 8 and not {once}.exists():"
    fault += f"\n        {once}.touch()\n        state = flipped(state)"
    path = write_run("flipped", **sections)
    done = run_until_done(path, undisturbed, **launcher(fault))
    assert done.codes == [Exit.FAILED, Exit.DONE]
    text = path.with_suffix(".log").read_text()
    assert f"after step {found} devices hold copies of the train state that differ" in text
    assert "decoder/embed" in text
    assert "resuming: after step 8" in done.output
    assert_equal_runs(tmp_path / "flipped", tmp_path / "golden")
    record_property("flipped before step", 9)
    record_property("found after step", found)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("copies", [(0, 1), (1,)], ids=["one leaf", "one leaf of one copy"])
def test_weights_that_are_not_finite_end_the_run_which_goes_on_from_before_them(
    copies, value, write_run, tmp_path, record_property
):
    """What is in one leaf is in every loss from then on; nothing of it is saved."""
    sections = {
        "mesh": {"data": 2, "fsdp": 1},
        "runtime": {"device_count": 2, "platform": "cpu"},
        "train": {"num_steps": 20, "eval_every": 0, "max_skipped_steps": 3},
        "checkpoint": {"every": 4},
    }
    run_until_done(write_run("golden", **sections), undisturbed)
    once = f"Path({str(tmp_path / 'once')!r})"
    fault = f"if step == 9 and not {once}.exists():"
    fault += (
        f"\n        {once}.touch()\n        state = poisoned(state, float({value!r}), {copies})"
    )
    path = write_run("poisoned", **sections)
    done = run_until_done(path, undisturbed, **launcher(fault))
    assert done.codes == [Exit.FAILED, Exit.DONE]
    text = path.with_suffix(".log").read_text()
    assert "step 10 was skipped: its loss (nan)" in text
    assert "the last 3 steps" in text
    assert "resuming: after step 8" in done.output
    assert_equal_runs(tmp_path / "poisoned", tmp_path / "golden")
    record_property("poisoned before step", 10)
    record_property("went on after step", 8)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_false_alarm_in_a_thousand_steps(write_run, tmp_path, record_property):
    mesh = {"mesh": {"data": 2, "fsdp": 2}}
    train = {"num_steps": 1000, "eval_every": 0, "log_every": 10}
    seconds = {}
    for every in (0, 1):
        runtime = {"device_count": 4, "platform": "cpu", "check_replicas_every": every}
        sections = {**mesh, "train": train, "runtime": runtime, "checkpoint": {"every": 0}}
        done = run_until_done(write_run(f"every{every}", **sections), undisturbed)
        assert done.codes == [Exit.DONE]
        metrics = read_metrics(tmp_path / f"every{every}").values()
        seconds[every] = np.median([values["time/step_seconds"] for values in metrics])
    assert_equal_runs(tmp_path / "every1", tmp_path / "every0")
    record_property("false_alarms_in_1000_comparisons", 0)
    record_property("comparison_every_step_time_ratio", round(seconds[1] / seconds[0], 2))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_eight_devices_then_four_then_eight(write_run, tmp_path, record_property):
    sections = {
        "mesh": {"elastic": "batch", "data": 2, "fsdp": 4},
        "train": {"num_steps": 18, "batch_size": 8, "eval_every": 0},
        "runtime": {"device_count": 8, "platform": "cpu"},
    }
    run_until_done(write_run("golden", **sections), undisturbed)
    path = write_run("resized", **sections)
    for steps, devices in ((6, 8), (12, 4), (18, 8)):
        ends = [f"train.num_steps={steps}", "schedule.total_steps=18"]
        done = run_until_done(path, undisturbed, *ends, f"runtime.device_count={devices}")
        if steps == 12:
            assert "4 devices, and the mesh was written for 8: mesh.data 2 -> 1, " in done.output
            assert "train.microbatches 1 -> 2; the batch stays 8 sequences" in done.output
        if steps > 6:
            assert "the run goes on with" in done.output
    record_property("resized_largest_loss_difference", compare_losses(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_then_one(write_run, tmp_path, record_property):
    """A host is lost, and the launcher is started on the one that is left."""
    sections = {
        "mesh": {"elastic": "batch", "data": 2, "fsdp": 2},
        "train": {"num_steps": 12, "batch_size": 8, "eval_every": 0},
        "runtime": {"device_count": 2, "platform": "cpu"},
    }

    def on(count):
        return {"launcher": [str(ROOT / "launch/local.py"), "-n", str(count), "--", "maxlm"]}

    run_until_done(write_run("golden", **sections), undisturbed, **on(2))
    path = write_run("resized", **sections)
    first = ["train.num_steps=6", "schedule.total_steps=12"]
    run_until_done(path, undisturbed, *first, **on(2))
    done = run_until_done(path, undisturbed, "schedule.total_steps=12", **on(1))
    assert "2 devices, and the mesh was written for 4: mesh.data 2 -> 1, " in done.output
    record_property("largest_loss_difference", compare_losses(tmp_path))


def compare_losses(folder):
    """Return the largest relative difference between the golden run's losses and the resized one's,
    which read the same tokens.
    """
    golden, resized = (curve(folder / name) for name in ("golden", "resized"))
    assert len(golden) > 0
    assert [row[2] for row in resized] == [row[2] for row in golden]
    losses = [np.array([float.fromhex(row[1]) for row in rows]) for rows in (resized, golden)]
    difference = np.abs(losses[0] / losses[1] - 1).max()
    assert difference < 1e-5
    return difference
