"""A run that something happens to every few minutes: kills, stops and goes on, signals, full disks;
it ends with the bits of the run that nothing happened to.

MAXLM_SOAK_MINUTES says how long it takes (scripts/drills --minutes); the golden run goes on beside it,
until it has done as many steps. There are 15 faults however short it is, so its goodput is held to an
aim from half an hour on: starts alone take more than a tenth of less.
"""

import contextlib
import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from maxlm.config.cluster.exit_codes import Exit
from tests.drills.conftest import (
    curve,
    last_step,
    read_metrics,
    start,
)

MINUTES = float(os.environ.get("MAXLM_SOAK_MINUTES", "60"))
FAULTS = 15  # in all: every 4 minutes of an hour
LEAST_GOODPUT, JUDGED_MINUTES = 0.9, 30
ENDLESS = 10**7  # steps


@pytest.mark.slow
@pytest.mark.timeout(4 * 60 * MINUTES + 3600)
def test_soak(write_run, make_disk, tmp_path, record_property):
    try:
        disk = make_disk(256 + round(32 * MINUTES))  # metrics of a minute may take 10 MB
    except pytest.skip.Exception:  # no right to mount one: no full disks then
        disk = None
    sections = {
        # 2,048 tokens, so that the time of a step is the model's and not the loop's around it.
        "train": {"num_steps": ENDLESS, "eval_every": 0, "log_every": 1, "batch_size": 64},
        "schedule": {"kind": "constant"},
        # Every few seconds: training waits for a save as long as a few of these steps take.
        "checkpoint": {"every": 200, "keep_last": 2},
    }
    path, run_dir = write_run("soak", **sections), (disk or tmp_path) / "soak"
    soak = Soak(run_dir, disk, MINUTES * 60)
    record_property("seed", soak.seed)
    golden = start(write_run("golden", **sections))
    try:
        soak_until_over(soak, path, run_dir)
        steps = last_step(run_dir)
        golden_steps = stop_after(golden, tmp_path / "golden", steps)
    finally:
        golden.kill()
        golden.wait()
    assert curve(run_dir) == curve(tmp_path / "golden")[:steps]
    goodput = read_metrics(run_dir)[steps]["goodput/fraction"]
    record_property("minutes", MINUTES)
    for fault, count in soak.faults.items():
        record_property(fault, count)
    record_property("steps", steps)
    record_property("steps that differ", 0)
    record_property("steps of the golden run, beside it", golden_steps)
    record_property("goodput", f"{goodput:.1%}")
    judged = f"at least {LEAST_GOODPUT:.0%}" if MINUTES >= JUDGED_MINUTES else "too short for one"
    record_property("goodput aim", judged)
    assert soak.faults.total() == FAULTS
    assert set(soak.faults) == set(soak.kinds)
    assert 0 < goodput <= 1
    assert goodput >= LEAST_GOODPUT or MINUTES < JUDGED_MINUTES


def soak_until_over(soak, path, run_dir):
    """Start the run again and again, and disturb it, until the soak is over."""
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


def stop_after(process, run_dir, steps):
    """Stop a process once its run has done so many steps; return how many it has done then."""
    deadline = time.monotonic() + 2 * 60 * MINUTES + 1800
    while last_step(run_dir) < steps:
        assert process.poll() is None, "the golden run has ended"
        assert time.monotonic() < deadline, "the golden run has not come as far"
        time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == Exit.STOPPED
    return last_step(run_dir)


class Soak:
    """Does something to a process every few minutes, at a random moment of each stretch of time, in
    a random order; after all of it, and not before its time is over, it stops the process.
    """

    def __init__(self, run_dir, disk, seconds):
        self.seed = time.time_ns() % 2**32
        self.faults = Counter()
        self.filled = False  # the disk, while the process that ran last did
        self._rng = random.Random(self.seed)
        self._run_dir, self._disk = run_dir, disk
        self.kinds = ["kills", "signals", "halts", *(["full disks"] if disk else [])]
        self._left = (self.kinds * FAULTS)[:FAULTS]
        self._rng.shuffle(self._left)
        self._began, self._seconds = time.monotonic(), seconds

    def is_over(self):
        return not self._left and time.monotonic() >= self._began + self._seconds

    def disturb(self, process):
        """Return when the process has ended or was told to."""
        self.filled = False
        due = self._when()
        while process.poll() is None:
            if self.is_over() and hears(process):
                process.send_signal(signal.SIGTERM)
                return
            if self._left and time.monotonic() >= due and hears(process):
                kind = self._left.pop()
                self.faults[kind] += 1
                if self._strike(kind, process):
                    return
                due = self._when()
            time.sleep(0.2)

    def _when(self):
        """Return when the next fault is due: in the middle half of the stretch that is its own."""
        stretch = FAULTS - len(self._left) + self._rng.uniform(0.25, 0.75)
        return self._began + self._seconds * stretch / FAULTS

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


def hears(process):
    """Tell whether a process has come to where maxlm hears signals; before, SIGTERM ends Python."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    caught = int(re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)
