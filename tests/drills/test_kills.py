"""SIGKILL at random moments of start-up, training and saves: the run that is started again each time
ends with the bits of the run that nothing happened to.
"""

import random
import time

import pytest

from tests.drills.conftest import assert_equal_runs, last_step, run_until_done, undisturbed

STEPS_A_KILL, STEPS_TO_SPARE = 16, 60


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.timeout(3600)
def test_random_kills_in_training(kills, write_run, tmp_path, record_property):
    # Every third step is saved, so that many of the kills fall into a save or a deletion.
    steps = STEPS_A_KILL * kills + STEPS_TO_SPARE
    sections = {
        "train": {"num_steps": steps, "eval_every": 50},
        "checkpoint": {"every": 3, "keep_last": 2},
    }
    run_until_done(write_run("golden", **sections), undisturbed)
    random_kills = RandomKills(kills, steps, tmp_path / "killed")
    starts = run_until_done(write_run("killed", **sections), random_kills)
    elsewhere = random_kills.elsewhere
    record_property("seed", random_kills.seed)
    record_property("kills after the first step", random_kills.in_training)
    record_property("kills before it", elsewhere)
    record_property("steps", steps)
    assert random_kills.in_training == kills
    assert starts.codes == [-9] * (kills + elsewhere) + [0]
    assert_equal_runs(tmp_path / "killed", tmp_path / "golden")
    record_property("steps that differ", 0)
    record_property("seconds", round(starts.seconds))


class RandomKills:
    """Kill the processes of a run until so many were killed in training, after a step of theirs: every
    third some time after its start, wherever that is, the others some random steps after their first.
    """

    def __init__(self, kills, steps, run_dir):
        self.seed = time.time_ns() % 2**32
        self.in_training = self.elsewhere = 0
        self._rng = random.Random(self.seed)
        self._kills, self._steps, self._run_dir = kills, steps, run_dir

    def __call__(self, process, number):
        if self.in_training == self._kills:
            return
        timed = number % 3 == 2
        seconds = self._rng.uniform(0, 6) if timed else 120
        most = self._most_steps()
        steps = most if timed else self._rng.randint(1, most)
        trained = self._train(process, steps, seconds)
        assert process.poll() is None, "it ended before it was killed"
        assert trained or timed, f"no step in {seconds} s"
        process.kill()
        self.in_training += trained
        self.elsewhere += not trained

    def _most_steps(self):
        """Return how many steps a process may do, so that the run is not done before all kills."""
        left = self._steps - last_step(self._run_dir) - STEPS_TO_SPARE
        return max(2 * left // (self._kills - self.in_training + 1), 1)

    def _train(self, process, steps, seconds):
        """Wait until the process has done so many steps, or for so many seconds, and a moment longer;
        return whether it was seen to do one.
        """
        deadline, before, first = time.monotonic() + seconds, self._file(), None
        while time.monotonic() < deadline and process.poll() is None:
            # What a process finds is there from its first moment on: only more than that is a step of its own.
            if first is None and self._file() != before:
                first = last_step(self._run_dir)
            if first is not None and last_step(self._run_dir) >= first + steps:
                time.sleep(self._rng.uniform(0, 0.03))
                break
            time.sleep(0.002)
        return first is not None and last_step(self._run_dir) > first

    def _file(self):
        """Identify the file of metrics: each process begins a new one."""
        path = self._run_dir / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else None
