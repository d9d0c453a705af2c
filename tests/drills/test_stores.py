"""Machines that are lost with their disks: a run goes on from its store alone, and ends with the bits
of the run that nothing happened to.
"""

import random
import shutil
import time

import pytest

from maxlm.checkpoint import layout
from tests.drills.conftest import (
    assert_equal_runs,
    last_step,
    run_until_done,
    start,
    undisturbed,
)

LOST = 8
STEPS = 300


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_machines_lost_with_their_disks(write_run, tmp_path, record_property):
    sections = {"train": {"num_steps": STEPS, "eval_every": 0}, "checkpoint": {"every": 5}}
    run_until_done(write_run("golden", **sections), undisturbed)
    run_dir, slow = tmp_path / "run", tmp_path / "slow"
    sections["checkpoint"]["store"] = {"url": str(slow), "megabytes_per_second": 2.0}
    path = write_run("run", **sections)
    rng = random.Random(time.time_ns())
    lost, fetched = [], []

    def lose(process, number):
        if number >= LOST:
            return
        copies = copied(slow)
        # Until something new is in the store, and a moment longer: the next copy is going on then.
        while copied(slow) <= copies and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        lost.append(last_step(run_dir) - copied(slow))
        fetched.append(copied(slow))
        shutil.rmtree(run_dir)

    starts = run_until_done(path, lose)
    assert starts.codes == [-9] * LOST + [0]
    assert "fetched the checkpoint of step" in starts.output
    assert_equal_runs(run_dir, tmp_path / "golden")
    assert copied(slow) == STEPS
    assert fetched == sorted(fetched)
    record_property("machines lost", LOST)
    record_property("steps done again, most", max(lost))
    record_property("steps that differ", 0)
    record_property("seconds", round(starts.seconds))


def copied(slow):
    """Return the newest step that is whole in a store which is a folder, 0 without one."""
    names = [path.name.split(".")[0] for path in slow.glob("checkpoints/*.whole.json")]
    return max(map(int, names), default=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_store_that_stops_answering(write_run, make_disk, tmp_path, record_property):
    """The disk of the copies is full from the start, has room later, and has all then."""
    disk = make_disk(1)
    (disk / "filler").write_bytes(bytes(2**20 - 2**16))
    sections = {"train": {"num_steps": 60, "eval_every": 0}, "checkpoint": {"every": 10}}
    path = write_run("run", **sections)
    store = f"checkpoint.store.url={disk}/slow"
    process = start(path, store)
    assert process.wait(600) == 1  # the run is done, its last copy is not there
    output = path.with_suffix(".log").read_text()
    assert output.count("was not copied to") >= 2
    assert "start the same command again to copy it" in output
    assert layout.saved_steps(tmp_path / "run/checkpoints")[0] == 60
    (disk / "filler").unlink()
    assert start(path, store).wait(600) == 0
    assert copied(disk / "slow") == 60
    record_property("failed copies", output.count("was not copied to"))
    record_property("steps lost", 0)
