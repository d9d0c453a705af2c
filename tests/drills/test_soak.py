"""A run that something happens to every few minutes: kills, stops and goes on, signals, full disks;
it ends with the bits of the run that nothing happened to.

MAXLM_SOAK_MINUTES says how long it takes (scripts/drills --minutes); the golden run comes after it,
and takes about as long again.
"""

import contextlib
import os
import random
import signal
import time
from collections import Counter

import pytest

from maxlm.config.cluster.exit_codes import Exit
from tests.drills.conftest import (
    curve,
    last_step,
    read_metrics,
    run_until_done,
    start,
    undisturbed,
)

MINUTES = float(os.environ.get("MAXLM_SOAK_MINUTES", "60"))
FAULTS = 15  # in all: every 4 minutes of an hour
ENDLESS = 10**7  # steps


@pytest.mark.slow
@pytest.mark.timeout(4 * 60 * MINUTES + 3600)
def test_soak(write_run, make_disk, tmp_path, record_property):
    try:
        disk = make_disk(256)
    except pytest.skip.Exception:  # no right to mount one: no full disks then
        disk = None
    sections = {
        "train": {"num_steps": ENDLESS, "eval_every": 0, "log_every": 1},
        "schedule": {"kind": "constant"},
        "checkpoint": {"every": 25, "keep_last": 2},
    }
    path, run_dir = write_run("soak", **sections), (disk or tmp_path) / "soak"
    soak = Soak(run_dir, disk, MINUTES * 60)
    record_property("seed", soak.seed)
    while not soak.is_over():
        process = start(path, f"run_dir={run_dir}")
        try:
            soak.disturb(process)
            code = process.wait(timeout=300)
        finally:
            process.kill()
            process.wait()
        assert code in (-signal.SIGKILL, Exit.STOPPED) or soak.filled, (
            code,
            path.with_suffix(".log").read_text()[-3000:],
        )
    steps = last_step(run_dir)
    golden = write_run("golden", **sections)
    run_until_done(golden, undisturbed, f"train.num_steps={steps}")
    assert curve(run_dir) == curve(tmp_path / "golden")
    record_property("minutes", MINUTES)
    for fault, count in soak.faults.items():
        record_property(fault, count)
    record_property("steps", steps)
    record_property("steps that differ", 0)
    record_property("goodput", f"{read_metrics(run_dir)[steps].get('goodput/fraction', -1):.1%}")


class Soak:
    """Does something random to a process, every few minutes; at the end, it stops it."""

    def __init__(self, run_dir, disk, seconds):
        self.seed = time.time_ns() % 2**32
        self.faults = Counter()
        self.filled = False  # the disk, while the process that ran last did
        self._rng = random.Random(self.seed)
        self._run_dir, self._disk = run_dir, disk
        self._pause = seconds / FAULTS
        self._end = time.monotonic() + seconds
        self._next = self._when()

    def is_over(self):
        return time.monotonic() >= self._end

    def disturb(self, process):
        """Return when the process has ended or was told to."""
        self.filled = False
        while process.poll() is None:
            if self.is_over():
                process.send_signal(signal.SIGTERM)
                return
            if time.monotonic() >= self._next:
                self._next = self._when()
                kinds = ["kills", "signals", "halts", *(["full disks"] if self._disk else [])]
                kind = self._rng.choice(kinds)
                self.faults[kind] += 1
                if self._strike(kind, process):
                    return
            time.sleep(0.2)

    def _when(self):
        return time.monotonic() + self._pause * self._rng.uniform(0.5, 1.5)

    def _strike(self, kind, process):
        """Do one thing to a process; tell whether it ends by that."""
        if kind == "kills":
            process.kill()
        elif kind == "signals":
            process.send_signal(self._rng.choice([signal.SIGTERM, signal.SIGINT]))
        elif kind == "halts":
            process.send_signal(signal.SIGSTOP)
            time.sleep(self._rng.uniform(1, 20))
            process.send_signal(signal.SIGCONT)
            return False
        else:
            self._fill(process)
        return True

    def _fill(self, process):
        """Fill the disk until the process notices, then make room, as its message asks for."""
        self.filled = True
        filler = self._disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**16))
        with contextlib.suppress(Exception):
            process.wait(timeout=120)
        filler.unlink()
        if process.poll() is None:
            process.kill()
