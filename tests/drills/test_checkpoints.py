"""Faults done to checkpoints: files that change, kills inside saves and deletions, a folder that
goes, saves without end.
"""

import gc
import itertools
import os
import random
import shutil
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxlm.checkpoint import Checkpointer, CheckpointReader
from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.schema import CheckpointConfig
from tests import audit
from tests.train.conftest import ROOT, curve, finish, start, wait_for_step

# What fails to read a damaged file after the first that did reports to an event loop that has ended.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

MUTATIONS = 200
KILLS = 50  # that leave something half-written
MOST_TRIES = 10 * KILLS  # about one in four does
SAVES = 50
MOST_GROWTH_MB = 16


# Runs maxlm without root's right to write everywhere (Linux: CAP_DAC_OVERRIDE and _READ_SEARCH, taken
# from what the next program may have); another user could not read root's Python and data.
UNPRIVILEGED = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):
        assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0, "PR_CAPBSET_DROP"
os.execv(sys.executable, [sys.executable, "-m", "maxlm", *sys.argv[1:]])
"""


def state_of(step, rows=256):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    values = np.random.default_rng(step).standard_normal((rows, 64)).astype(np.float32)

    def put(array, *axes):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    tokens = np.array([step, 7], np.uint32)
    return {
        "decoder": {"weights": put(values, "a", "b"), "scale": put(values[0], "b")},
        "optimizer": put(values.astype(jnp.bfloat16), "b", "a"),
        "step": put(np.int32(step)),
        "token_hash": put(tokens),
    }


def save(folder, *steps, **settings):
    with Checkpointer(folder, CheckpointConfig(**settings)) as checkpointer:
        for step in steps:
            checkpointer.save(step, state_of(step), {"token_hash": f"{step:08x}{7:08x}"})


def flip(file, others, rng):
    data = bytearray(file.read_bytes() or b"\0")
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def truncate(file, others, rng):
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))] if data else b"x")


def delete(file, others, rng):
    file.unlink()


def empty(file, others, rng):
    file.write_bytes(b"")


def swap(file, others, rng):
    other = rng.choice([one for one in others if one != file])
    mine, its = file.read_bytes(), other.read_bytes()
    file.write_bytes(its)
    other.write_bytes(mine)


def copy_another_step_s(file, others, rng):
    """Of the same name, or of the same folder where names are chance."""
    there = next(parent for parent in file.parents if parent.name == "00000003")
    older = there.with_name("00000002")
    same = older / file.relative_to(there)
    place = same.parent if same.parent.is_dir() else older
    candidates = [same] if same.is_file() else [one for one in place.rglob("*") if one.is_file()]
    file.write_bytes(rng.choice(candidates).read_bytes())


def copy_under_another_name(file, others, rng):
    older = next(parent for parent in file.parents if parent.name == "00000003")
    shutil.copytree(older.with_name("00000002"), older.with_name("00000007"))


KINDS = (flip, truncate, delete, empty, swap, copy_another_step_s, copy_under_another_name)


@pytest.mark.slow
def test_changes_of_files(tmp_path, record_property, caplog):
    pristine, folder = tmp_path / "pristine", tmp_path / "checkpoints"
    save(pristine, 1, 2, 3)
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0)
    )
    truth = {step: state_of(step) for step in (1, 2, 3)}
    seed = time.time_ns() % 2**32
    rng, told, unread, silent = random.Random(seed), 0, 0, []
    for number in range(MUTATIONS):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pristine, folder)
        files = sorted(one for one in (folder / "00000003").rglob("*") if one.is_file())
        # Every second one where most bytes are: in the arrays.
        sizes = [one.stat().st_size if number % 2 else 1 for one in files]
        kind, (file,) = KINDS[number % len(KINDS)], rng.choices(files, sizes)
        kind(file, files, rng)
        caplog.clear()
        restored = CheckpointReader(folder).restore(wanted)
        damage_told = "damaged checkpoint" in caplog.text
        right = equal(restored.state, truth[restored.step])
        told += right and damage_told
        unread += right and not damage_told and restored.step == 3
        if not right or (restored.step != 3 and not damage_told):
            silent.append((kind.__name__, str(file), restored.step))
    record_property("seed", seed)
    record_property("changes", MUTATIONS)
    record_property("told, and the newest whole one restored", told)
    record_property("in what nobody reads", unread)
    record_property("silent", len(silent))
    assert not silent
    assert told + unread == MUTATIONS
    assert told > MUTATIONS / 3


def equal(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_inside_saves_and_deletions(tmp_path, record_property):
    """The job saves without a pause, and deletes as often: a kill falls into one or the other."""
    seed = time.time_ns() % 2**32
    rng, checkpoints = random.Random(seed), tmp_path / "checkpoints"
    firsts, left = [], 0
    while left < KILLS and len(firsts) < MOST_TRIES:
        job, first = begin_saving(tmp_path, 10**6)
        firsts.append(first)
        if len(firsts) % 3:  # the others before or in their first save
            wait_for(checkpoints / f"{first:08d}", job)
        time.sleep(rng.uniform(0, 0.5))
        job.kill()
        job.communicate()
        # The job swept away what the kill before had left, before it said where it begins.
        left += any(not path.name.isdecimal() for path in checkpoints.iterdir())
    job, first = begin_saving(tmp_path, 3)
    firsts.append(first)
    out, err = job.communicate(timeout=120)
    assert (out.strip(), job.returncode) == ("done", 0), err
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == [f"{first + 1:08d}", f"{first + 2:08d}"]
    record_property("seed", seed)
    record_property("kills that left a save or deletion half-done", left)
    record_property("other kills", len(firsts) - 1 - left)
    record_property(
        "went back behind a whole checkpoint",
        sum(b < a for a, b in itertools.pairwise(firsts)),
    )
    record_property("steps saved", first + 2)
    assert firsts == sorted(firsts)
    assert left == KILLS


def begin_saving(run_dir, steps):
    """Start the job; return it and its first step, once it has compared what it restored with what
    that step's state was.
    """
    job = start_saving(run_dir, steps)
    line = job.stdout.readline().strip()
    assert line.startswith("from "), job.stderr.read()
    return job, int(line.removeprefix("from "))


def start_saving(run_dir, steps):
    cache = {name: os.environ[name] for name in os.environ if "COMPILATION_CACHE" in name}
    watched = audit.environment_of(run_dir)
    packages = os.pathsep.join([str(ROOT), watched["PYTHONPATH"]])
    return subprocess.Popen(
        [sys.executable, ROOT / "tests/checkpoint/saving_job.py", run_dir, str(steps)],
        cwd=ROOT,
        env={**watched, "PYTHONPATH": packages, **cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path, job, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert job.poll() is None, (job.stderr or job.stdout).read()
        assert time.monotonic() < deadline, f"{path} was not saved in {seconds} s"
        time.sleep(0.005)


@pytest.mark.slow
def test_host_memory_over_saves(tmp_path, record_property):
    """Each save has 17 MB of arrays in flight: what is kept of one would show."""
    resident = []
    with Checkpointer(
        tmp_path / "checkpoints", CheckpointConfig(keep_last=1, verify="all")
    ) as saver:
        for step in range(10 + SAVES):  # the first ten warm up allocators
            state = state_of(step, rows=2**15)
            saver.save(step, state, {"token_hash": f"{step:08x}{7:08x}"}, wait=True)
            del state
            gc.collect()
            resident.append(resident_mb())
    growth = statistics.median(resident[-10:]) - statistics.median(resident[10:20])
    record_property("saves", SAVES)
    record_property("MB a save", 17)
    record_property("growth in MB", round(growth, 1))
    assert growth < MOST_GROWTH_MB


def resident_mb():
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096 / 1e6


@pytest.mark.slow
def test_the_run_s_folder_goes(write_run, tmp_path, record_property):
    path = write_run(train={"num_steps": 100_000}, checkpoint={"every": 200})
    process = start(path)
    wait_for_step(tmp_path / "run", 100, process)
    shutil.rmtree(tmp_path / "run")
    output = finish(process, Exit.MISTAKE)
    assert "was removed while the run went on; step" in " ".join(output.split())
    assert "Traceback" not in output
    (saved,) = CheckpointReader(tmp_path / "run/checkpoints").steps()
    record_property("steps lost", 0)
    record_property("step saved in the folder made again", saved)
    assert saved % 200 == 0


def test_where_writing_is_not_permitted(write_run, tmp_path, record_property):
    """The folder becomes read-only while a run goes on, is still so at its next start, and no more."""
    path = write_run(
        train={"num_steps": 100_000, "eval_every": 0},
        schedule={"kind": "constant"},
        checkpoint={"every": 20},
    )
    folder = tmp_path / "run/checkpoints"
    process = start(path, launcher=["-c", UNPRIVILEGED])
    wait_for(folder / f"{20:08d}", process)
    folder.chmod(0o555)
    try:
        during = finish(process, Exit.MISTAKE)
        saved = CheckpointReader(folder).steps()[0]
        at_start = finish(start(path, launcher=["-c", UNPRIVILEGED]), Exit.MISTAKE)
    finally:
        folder.chmod(0o755)
    assert "writing there is not permitted" in " ".join(during.split())
    assert f"the newest whole one is of step {saved}" in " ".join(during.split())
    assert "choose another run_dir, or make it writable" in " ".join(at_start.split())
    assert "Traceback" not in during + at_start
    output = finish(start(path, f"train.num_steps={saved + 20}"))
    assert f"resuming: after step {saved}" in output
    assert CheckpointReader(folder).steps() == [saved + 20, saved]
    record_property("whole checkpoints lost", 0)


@pytest.mark.slow
def test_going_back_and_on(write_run, tmp_path, record_property):
    path = write_run(train={"num_steps": 20, "eval_every": 0}, checkpoint={"keep_last": 9})
    finish(start(path))
    golden = curve(tmp_path / "run")
    output = finish(start(path, "checkpoint.resume_from=10"))
    assert "resuming: after step 10" in output
    assert curve(tmp_path / "run") == golden
    names = sorted(one.name for one in (tmp_path / "run/checkpoints").iterdir())
    whole = [f"{step:08d}" for step in (5, 10, 15, 20)]
    assert names == sorted([*whole, "00000015.later", "00000020.later"])
    # A requeue of the same command does not go back once more.
    assert "checkpoint.resume_from=10 is done" in finish(start(path, "checkpoint.resume_from=10"))
    assert names == sorted(one.name for one in (tmp_path / "run/checkpoints").iterdir())
    record_property("steps that differ", 0)
