"""A checkpoint of one mesh goes on with other meshes and counts of processes: the same tokens, and the
losses of the run that stayed where it was, to rounding.
"""

import shutil

import numpy as np
import pytest

from tests.drills.conftest import ROOT, curve, run_until_done, undisturbed

STEPS, SAVED = 12, 6
TOLERANCE = 1e-5  # of a loss, relative: docs/reliability.md
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
OTHERS = {
    # name: (processes, devices of each, mesh)
    "1 device": (1, 1, {"data": 1}),
    "fsdp 8": (1, 8, {"fsdp": 8}),
    "context 2, tensor 2": (1, 4, {"context": 2, "tensor": 2}),
    "stage 2": (1, 2, {"stage": 2}),
    "2 processes, as saved": (2, 4, EIGHT),
    "4 processes, fsdp 4": (4, 1, {"fsdp": 4}),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_restores_on_six_other_meshes(write_run, tmp_path, record_property):
    sections = {
        "train": {"num_steps": STEPS, "batch_size": 8, "eval_every": 0},
        "checkpoint": {"every": SAVED},
    }
    saved = {"mesh": EIGHT, "runtime": {"device_count": 8, "platform": "cpu"}}
    run_until_done(write_run("golden", **sections, **saved), undisturbed)
    ends = [f"train.num_steps={SAVED}", f"schedule.total_steps={STEPS}"]
    run_until_done(write_run("saved", **sections, **saved), undisturbed, *ends)
    golden, largest = curve(tmp_path / "golden"), {}
    for name, (processes, devices, mesh) in OTHERS.items():
        other = {"mesh": mesh, "runtime": {"device_count": devices, "platform": "cpu"}}
        path = write_run(name, **sections, **other)
        shutil.copytree(tmp_path / "saved", tmp_path / name)
        local = [str(ROOT / "launch" / "local.py"), "-n", str(processes), "--", "maxlm"]
        options = {"launcher": local} if processes > 1 else {}
        done = run_until_done(
            path, undisturbed, f"train.microbatches={mesh.get('stage', 1)}", **options
        )
        assert done.codes == [0], done.output
        assert f"resuming: after step {SAVED}" in done.output
        went_on = curve(tmp_path / name)
        assert went_on[:SAVED] == golden[:SAVED]
        assert [(row[0], row[2]) for row in went_on] == [(row[0], row[2]) for row in golden]
        losses = [np.array([float.fromhex(row[1]) for row in rows]) for rows in (went_on, golden)]
        largest[name] = np.abs(losses[0] / losses[1] - 1).max()
    record_property("meshes and process counts", len(largest))
    for name, difference in largest.items():
        record_property(f"{name}: largest loss difference", f"{difference:.1e}")
    record_property("steps whose tokens differ", 0)
    assert max(largest.values()) < TOLERANCE
